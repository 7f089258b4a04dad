/** The list of variants, and what an administrator may do to it. */

import { call, keepKey, keyOf } from "./api.js";
import { byId, fillSelect, fillTable, make, tell } from "./dom.js";
import * as format from "./format.js";
import { pills } from "./live.js";
import { onServed, refresh } from "./served.js";

const POLL_MS = 1000;
const RUN = "/admin/probes/run";

/** @type {(string | [string, "number"])[]} */
const COLUMNS = [
  "Variant", "State", ["Removed", "number"], ["Exactly", "number"], ["Parameters", "number"], ["Alone", "number"],
  ["Marginal", "number"], ["Accuracy", "number"], "Interval", ["Lost at most", "number"], ["Running", "number"], "",
];

/** @typedef {import("./api.js").Listing} Listing */

export class VariantsView {
  #active = false;
  /** @type {number | undefined} */
  #timer;
  /** Whether a run of probes is followed to its end. */
  #following = false;
  /** Whether the last poll failed, so that the next one that does not takes the complaint back. */
  #lost = false;

  constructor() {
    onServed(({ listing }) => this.#show(listing));
    byId("admin-key").value = keyOf("admin");
    onSubmit("add-variant", () => this.#add());
    onSubmit("run-probes", () => this.#probe());
    onSubmit("admin-key-form", () => {
      keepKey("admin", byId("admin-key").value.trim());
      this.#say(byId("admin-key").value ? "The admin key is kept until this tab is closed." : "The admin key is forgotten.");
    });
  }

  /** Whether the view is on show; while it is, it is kept up to date. @param {boolean} active */
  setActive(active) {
    this.#active = active;
    clearTimeout(this.#timer);
    if (active) this.#poll();
  }

  async #poll() {
    try {
      if (!document.hidden) await refresh({ quiet: true });
      if (this.#following) await this.#follow();
      if (this.#lost) this.#say("");
      this.#lost = false;
    } catch (/** @type {any} */ error) {
      this.#lost = true;
      this.#fail(error);
    }
    clearTimeout(this.#timer);
    if (this.#active) this.#timer = setTimeout(() => this.#poll(), POLL_MS);
  }

  /** @param {Listing} listing */
  #show(listing) {
    const shared = `${format.bytes(listing.resident_bytes)} of weights, shared by all`;
    const { task, tolerance, reason } = listing.probes;
    const judged = task
      ? `at ${task} they may lose ${format.share(tolerance)} of the items`
      : `not judged: ${reason}`;
    byId("variants-summary").textContent = `${shared}; ${judged}`;
    fillTable(byId("variant-table"), "Variants", COLUMNS, listing.data.map((variant) => this.#row(variant)));
    const select = byId("probe-variant");
    const ids = listing.data.map(({ id }) => id);
    fillSelect(select, ids, ids.includes(select.value) ? select.value : "", "All");
    byId("run-probes").querySelector("button").disabled = task === null;
  }

  /** @param {Listing["data"][number]} variant @returns {[string, ...(Node | string)[]]} */
  #row(variant) {
    const { id, evidence, state } = variant;
    const retire = make("button", { class: "plain", type: "button", "aria-label": `Retire ${id}` }, "Retire");
    retire.disabled = state === "retiring" || variant.default;
    retire.addEventListener("click", () => this.#retire(id));
    return [
      id,
      pills(state, evidence?.verdict, variant.default),
      format.share(variant.sparsity),
      format.percent(variant.exact_sparsity, 2),
      format.count(variant.parameters),
      format.bytes(variant.standalone_bytes),
      format.bytes(variant.marginal_bytes),
      format.percent(evidence?.accuracy),
      format.interval(evidence),
      evidence?.items ? format.points(Math.max(0, evidence.drop_high)) : format.NOTHING,
      format.count(variant.requests_in_flight),
      retire,
    ];
  }

  async #add() {
    const delta = byId("new-delta").value.trim();
    // Sparsities are decimal numbers: 12.3 % is to be 0.123, not the nearest binary quotient.
    const sparsity = Number((Number(byId("new-sparsity").value) / 100).toPrecision(12));
    await this.#act(async () => {
      const added = await call("/admin/variants", { method: "POST", body: { sparsity, ...(delta ? { delta } : {}) } });
      byId("add-variant").reset();
      return `${added.id} is served now.`;
    });
  }

  /** @param {string} id */
  async #retire(id) {
    await this.#act(async () => {
      await call(`/admin/variants/${encodeURIComponent(id)}`, { method: "DELETE" });
      return `${id} takes no new requests.`;
    });
  }

  async #probe() {
    const variant = byId("probe-variant").value;
    const items = Number(byId("probe-items").value);
    await this.#act(async () => {
      await call(RUN, { method: "POST", body: { items, ...(variant ? { variants: [variant] } : {}) } });
      this.#following = true;
      await this.#follow();
      return "";
    });
  }

  /** Says how far the run of probes has come. */
  async #follow() {
    let run;
    try {
      run = await call(RUN);
    } catch (/** @type {any} */ error) {
      if (error.status !== 0) this.#following = false; // the server is there, and knows of no run
      byId("probe-run").hidden = !this.#following;
      throw error;
    }
    const progress = byId("probe-progress");
    progress.max = run.items;
    progress.value = run.items_done;
    byId("probe-run").hidden = false;
    const done = `${format.count(run.items_done)} of ${format.count(run.items)} items`;
    const ends = { running: done, done: `Done: ${done}.`, cancelled: "Cancelled.", failed: `Failed: ${run.error}` };
    tell(byId("probe-told"), ends[/** @type {keyof typeof ends} */ (run.state)]);
    this.#following = run.state === "running";
  }

  /** Does what was asked for, and says how it went. @param {() => Promise<string>} action */
  async #act(action) {
    try {
      this.#say(await action());
      await refresh();
    } catch (/** @type {any} */ error) {
      this.#fail(error);
    }
  }

  /** @param {string} words */
  #say(words) {
    byId("variants-status").classList.remove("trouble");
    tell(byId("variants-status"), words);
  }

  /** @param {any} error */
  #fail(error) {
    const wantsKey = error.code === "invalid_api_key" && error.isOfAdmin ? " (the admin key is asked for below)" : "";
    byId("variants-status").classList.add("trouble");
    tell(byId("variants-status"), `${error.message}${wantsKey}`);
  }
}

/** @param {string} id of a form @param {() => void} action */
function onSubmit(id, action) {
  byId(id).addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    action();
  });
}
