/** What goes on now: asks /v1/live every interval while anybody looks, and goes on by itself after a restart. */

import { call } from "./api.js";
import { IntervalChart, sparkline, TimeChart } from "./charts.js";
import { byId, fill, fillTable, make } from "./dom.js";
import * as format from "./format.js";
import { extend, isRestarted, knownUntil, latest } from "./history.js";

const RETRY_SECONDS = 1;
const SPARKLINE_ENTRIES = 90;
/** Between two ticks of an axis: of things that are counted, and of bytes. */
const WHOLE = Array.from({ length: 7 }, (_, i) => [1, 2, 5].map((step) => step * 10 ** i)).flat();
const BINARY = Array.from({ length: 50 }, (_, i) => 2 ** i);

/** @typedef {import("./history.js").Live} Live */

export class LiveView {
  /** @type {Live | null} */
  #live = null;
  #active = false;
  /** @type {number | undefined} */
  #timer;
  #asking = false;
  #charts = charts(byId("charts"));

  constructor() {
    document.addEventListener("visibilitychange", () => this.#wake());
  }

  /** Whether the view is on show. @param {boolean} active */
  setActive(active) {
    this.#active = active;
    this.#wake();
  }

  #wake() {
    clearTimeout(this.#timer);
    if (this.#active && !document.hidden) this.#poll();
  }

  async #poll() {
    if (this.#asking) return;
    this.#asking = true;
    let pause = RETRY_SECONDS;
    try {
      this.#live = await this.#ask();
      pause = this.#live.interval_seconds;
      this.#show(this.#live);
    } catch (/** @type {any} */ error) {
      const words = error.status === 0 ? "Reconnecting …" : `${error.message} – trying again …`;
      this.#connection(words, true);
    } finally {
      this.#asking = false;
    }
    clearTimeout(this.#timer);
    if (this.#active && !document.hidden) this.#timer = setTimeout(() => this.#poll(), 1000 * pause);
  }

  /** @returns {Promise<Live>} */
  async #ask() {
    // A person is asked for a key at first, and not every two seconds.
    const options = { quiet: this.#live !== null };
    const since = knownUntil(this.#live);
    const answer = await call(since === null ? "/v1/live" : `/v1/live?since=${since}`, options);
    if (this.#live && isRestarted(this.#live, answer)) return call("/v1/live", options);
    return extend(this.#live, answer);
  }

  /** @param {string} words @param {boolean} lost */
  #connection(words, lost) {
    const status = byId("connection");
    status.classList.toggle("lost", lost);
    if (status.textContent !== words) status.textContent = words;
  }

  /** @param {Live} live */
  #show(live) {
    const states = {
      ready: `Serving ${live.model} since ${format.moment(live.started)}`,
      draining: `Shutting down ${live.model}`,
      stuck: `The engine of ${live.model} is stuck in a step that does not end`,
      dead: `The engine of ${live.model} has died`,
    };
    this.#connection(`${states[live.state] ?? live.state}, version ${live.version}`, live.state !== "ready");
    fill(byId("figures"), figures(live));
    for (const chart of this.#charts.overTime) chart.update(live.series);
    this.#showAccuracy(live);
    fillTable(byId("live-variants"), "Sizes now", COLUMNS, live.variants.map((variant) => row(variant, live)));
    fill(byId("verdicts"), verdicts(live));
  }

  /** @param {Live} live */
  #showAccuracy(live) {
    const points = live.variants.flatMap(({ name, sparsity, evidence }) =>
      evidence?.accuracy == null
        ? []
        : [
            {
              ...{ label: name, x: sparsity, y: evidence.accuracy },
              ...{ low: evidence.accuracy_low, high: evidence.accuracy_high },
              ...{ onCurve: !name.includes("+"), bad: evidence.verdict === "degraded" },
            },
          ],
    );
    const dense = live.variants[0]?.evidence?.accuracy;
    const tolerated = dense == null || live.tolerance === null ? null : Math.max(0, dense - live.tolerance);
    this.#charts.accuracy.update(points, { x: live.safe_sparsity, y: tolerated });
  }
}

/** @param {HTMLElement} parent */
function charts(parent) {
  const names = { x: "Removed", y: "Accuracy", limitX: "Safe up to", limitY: "Tolerated" };
  const accuracy = new IntervalChart(parent, "Accuracy by size", names);
  const overTime = [
    new TimeChart(parent, "Tokens per second", format.rate, [
      { label: "generated", column: "generation_tokens_per_second" },
      { label: "prompts", column: "prompt_tokens_per_second", second: true },
    ]),
    new TimeChart(parent, "Time to first token", format.latency, [
      { label: "median", column: "time_to_first_token_p50_seconds" },
      { label: "p95", column: "time_to_first_token_p95_seconds", second: true },
    ]),
    new TimeChart(parent, "Between tokens", format.latency, [
      { label: "median", column: "inter_token_p50_seconds" },
      { label: "p95", column: "inter_token_p95_seconds", second: true },
    ]),
    new TimeChart(parent, "Requests at once", format.count, [
      { label: "running", column: "running" },
      { label: "waiting", column: "waiting", second: true },
    ], WHOLE),
    new TimeChart(parent, "Requests per second", format.rate, [
      { label: "ended", column: "requests_per_second" },
      { label: "rejected", column: "rejections_per_second", second: true },
    ]),
    new TimeChart(parent, "KV cache in use", format.share, [{ label: "used", column: "kv_usage_ratio" }]),
    new TimeChart(parent, "Memory of the process", format.bytes, [{ label: "now", column: "process_bytes" }], BINARY),
  ];
  return { accuracy, overTime };
}

/** The numbers at the top. @param {Live} live */
function figures(live) {
  const { series, limits, memory } = live;
  const chosen = live.variants.find(({ name }) => name === live.default_variant);
  const now = (/** @type {string} */ column) => series[column]?.at(-1);
  const entries = [
    [live.task ? `Accuracy, ${live.task}` : "Accuracy", format.percent(chosen?.evidence?.accuracy),
      `${live.default_variant}, ${format.interval(chosen?.evidence ?? null)}`],
    ["Tokens/s", format.rate(now("generation_tokens_per_second")),
      `${format.rate(now("requests_per_second"))} answers/s`],
    ["First token, p95", format.latency(latest(series.time_to_first_token_p95_seconds)),
      `median ${format.latency(latest(series.time_to_first_token_p50_seconds))}`],
    ["Requests", format.count(now("running")),
      `of ${format.count(limits.max_running)} at once; ${format.count(now("waiting"))} of ${format.count(limits.max_waiting)} wait`],
    ["Memory", format.bytes(memory.process_bytes),
      `weights ${format.bytes(memory.weight_bytes)}, KV ${format.share(now("kv_usage_ratio"))} of ${format.bytes(memory.kv_bytes)}`],
  ];
  return entries.map(([name, value, detail]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value, make("small", {}, detail))),
  );
}

/** @type {(string | [string, "number"])[]} */
const COLUMNS = [
  "Size", "State", ["Removed", "number"], ["Accuracy", "number"], "Interval", "Last probed", ["Tokens/s", "number"],
  "Tokens/s, 3 min", ["Running", "number"], ["Requests", "number"], ["Alone", "number"],
];

/** @param {Live["variants"][number]} variant @param {Live} live @returns {[string, ...(Node | string)[]]} */
function row(variant, live) {
  const { evidence, series } = variant;
  const tokens = series.generation_tokens_per_second ?? [];
  const age = evidence?.age_seconds;
  return [
    variant.name,
    pills(variant.state, evidence?.verdict, variant.name === live.default_variant),
    format.share(variant.sparsity),
    format.percent(evidence?.accuracy),
    format.interval(evidence),
    age == null ? "never" : `${format.duration(age)} ago`,
    format.rate(tokens.at(-1)),
    sparkline(tokens.slice(-SPARKLINE_ENTRIES)),
    format.count(variant.running),
    format.count(variant.requests),
    format.bytes(variant.standalone_bytes),
  ];
}

/**
 * State and verdict, each said once.
 * @param {string} state @param {string | undefined} verdict @param {boolean} isDefault
 */
export function pills(state, verdict, isDefault) {
  const words = new Set([state === "ready" ? verdict ?? state : state, ...(isDefault ? ["default"] : [])]);
  return make("span", {}, ...[...words].map((word) => make("span", { class: `pill ${word}` }, word)));
}

/** Newest first. @param {Live} live */
function verdicts(live) {
  if (!live.verdicts.length) return [make("li", { class: "hint" }, "No verdict has changed yet.")];
  return live.verdicts.toReversed().map(({ time, variant, verdict, previous }) =>
    make(
      "li",
      {},
      make("time", { dateTime: new Date(1000 * time).toISOString() }, format.moment(time)),
      make("b", {}, variant),
      ...(previous ? [make("span", { class: "hint" }, `${previous} → `)] : []),
      make("span", { class: `pill ${verdict}` }, verdict),
    ),
  );
}
