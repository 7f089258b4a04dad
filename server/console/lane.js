/** One size in the playground: its slider, its answer as it comes, and what the answer took. */

import { stream } from "./api.js";
import { byId, fillSelect, make, tell } from "./dom.js";
import * as format from "./format.js";

/** With more stops than this, only the first and the last have room for a label. */
const MAX_LABELS = 8;

/**
 * @typedef {import("./api.js").Variant} Variant
 * @typedef {import("./divergence.js").Divergence} Divergence
 *
 * @typedef {object} Answer
 * @property {string[]} tokens
 * @property {string} text
 * @property {boolean} running
 * @property {boolean} ended by itself or by its limit, neither stopped nor broken off
 * @property {string} finish why it ended, in the API's word
 * @property {number} asked when, in ms of the page's clock
 * @property {number} first token's time
 * @property {number} last token's time
 * @property {string} by the variant that answers
 * @property {string} error in words, or ""
 */

export class Lane {
  /** @type {Answer | null} */
  answer = null;
  /** @type {Variant[]} */
  #variants = [];
  /** Ends this lane's question, and no other's. */
  #asking = new AbortController();

  /** @param {{onSize: () => void, onRemove: (lane: Lane) => void, onProgress: () => void}} events */
  constructor(events) {
    const content = byId("lane-template").content.cloneNode(true);
    /** @type {HTMLElement} */
    this.element = content.firstElementChild;
    this.#events = events;
    this.#slider.addEventListener("input", () => this.#choose(this.#variants[Number(this.#slider.value)].id));
    this.#select.addEventListener("change", () => this.#choose(this.#select.value));
    this.#part("remove").addEventListener("click", () => events.onRemove(this));
  }

  /** @type {{onSize: () => void, onRemove: (lane: Lane) => void, onProgress: () => void}} */
  #events;
  #id = "";

  /** The chosen size's name. */
  get size() {
    return this.#id;
  }

  /** @returns {Variant | undefined} undefined where it is not served any more */
  get variant() {
    return this.#variants.find((variant) => variant.id === this.#id);
  }

  /** What there is to choose from, and what is chosen. @param {Variant[]} variants @param {string} size */
  offer(variants, size) {
    this.#variants = variants;
    this.#id = size;
    fillSelect(this.#select, variants.map(({ id }) => id), size);
    this.#slider.max = String(variants.length - 1);
    const labelled = (/** @type {number} */ i) =>
      variants.length <= MAX_LABELS || i === 0 || i === variants.length - 1;
    this.#part("stops").replaceChildren(
      ...variants.map((variant, i) =>
        make("span", {}, labelled(i) ? format.share(variant.sparsity).replace(" %", "") : "·"),
      ),
    );
    this.#showSize();
  }

  /** @param {boolean} removable */
  allowRemoval(removable) {
    this.#part("remove").hidden = !removable;
  }

  /**
   * Asks, and takes up the answer until it ends, breaks or is stopped. Never throws.
   * @param {object} body @param {AbortSignal} signal that stops it, as `stop` does
   */
  async ask(body, signal) {
    const asking = new AbortController();
    this.#asking = asking;
    signal.addEventListener("abort", () => asking.abort(), { once: true });
    const answer = {
      ...{ tokens: [], text: "", running: true, ended: false, finish: "", by: "", error: "" },
      ...{ asked: performance.now(), first: 0, last: 0 },
    };
    this.answer = answer;
    this.#events.onProgress();
    try {
      const wanted = { ...body, stream: true, logprobs: true };
      for await (const chunk of stream("/v1/chat/completions", wanted, asking.signal)) {
        take(answer, chunk);
        this.#events.onProgress();
      }
      answer.ended = true;
    } catch (/** @type {any} */ error) {
      if (error.name !== "AbortError") answer.error = sentence(error.message);
      else answer.finish = "stopped";
    } finally {
      answer.running = false;
      this.#events.onProgress();
    }
  }

  /** Has the server generate no more of an answer that nobody will see. */
  stop() {
    this.#asking.abort();
  }

  /**
   * Draws what there is of the answer.
   * @param {Divergence | null} leaves where it leaves `reference`'s answer
   * @param {string | null} reference null where this lane is the reference, or the only one
   * @param {boolean} agrees whether the two answers are known to be the same
   */
  show(leaves, reference, agrees) {
    const { answer } = this;
    const region = this.#part("answer");
    region.setAttribute("aria-busy", String(answer?.running ?? false));
    if (!answer) return;
    const { text } = answer;
    region.replaceChildren(
      ...(leaves && leaves.end > leaves.start
        ? [text.slice(0, leaves.start), make("mark", {}, text.slice(leaves.start, leaves.end)), text.slice(leaves.end)]
        : [text]),
    );
    tell(this.#part("divergence"), this.#remark(answer, leaves, reference, agrees));
    tell(this.#part("error"), answer.error);
    this.#measure();
  }

  /** @param {Answer} answer @param {Divergence | null} leaves @param {string | null} reference @param {boolean} agrees */
  #remark(answer, leaves, reference, agrees) {
    const told = [];
    if (answer.by && answer.by !== this.#id) told.push(`Answered by ${answer.by}.`);
    if (answer.finish === "stopped") told.push("Stopped.");
    if (answer.finish === "length") told.push("Cut off at its limit of tokens.");
    if (leaves && reference) {
      const said = answer.tokens[leaves.index];
      const instead = leaves.instead === null ? "the end" : quoted(leaves.instead);
      const now = said === undefined ? "the end" : quoted(said);
      told.push(`Leaves ${reference} at token ${leaves.index + 1}: ${now} instead of ${instead}.`);
    }
    if (agrees) told.push(`Word for word what ${reference} says.`);
    return told.join(" ");
  }

  /** @param {string} size */
  #choose(size) {
    this.stop();
    this.#id = size;
    this.answer = null;
    this.#part("answer").replaceChildren();
    tell(this.#part("divergence"), "");
    tell(this.#part("error"), "");
    this.#showSize();
    this.#events.onSize();
  }

  #showSize() {
    const { variant } = this;
    const removed = variant ? `${format.share(variant.sparsity)} removed` : "not served any more";
    this.#select.value = this.#id;
    this.#slider.value = String(Math.max(0, this.#variants.findIndex(({ id }) => id === this.#id)));
    this.#slider.setAttribute("aria-label", "Neurons removed");
    this.#slider.setAttribute("aria-valuetext", variant ? `${removed}, ${variant.id}` : removed);
    this.#part("share").value = removed;
    this.#part("answer").setAttribute("aria-label", `Answer of ${this.#id}`);
    this.#measure();
  }

  #measure() {
    const { variant, answer } = this;
    const started = answer && answer.first > 0;
    // With the wait for the first token: a short answer may reach the browser in one piece.
    const seconds = started ? (answer.last - answer.asked) / 1000 : 0;
    const measures = [
      ["Tokens/s", seconds > 0 ? format.rate(answer.tokens.length / seconds) : format.NOTHING,
        answer ? `${format.count(answer.tokens.length)} tokens` : "from asking to the last"],
      ["First token", started ? format.latency((answer.first - answer.asked) / 1000) : format.NOTHING, "in this browser"],
      ["Memory", format.bytes(variant?.standalone_bytes), this.#saving],
      ["Accuracy", format.percent(variant?.evidence?.accuracy), format.interval(variant?.evidence ?? null)],
    ];
    const rows = measures.map(([name, value, detail]) =>
      make("div", {}, make("dt", {}, name), make("dd", {}, value, make("small", {}, detail))),
    );
    this.#part("measures").replaceChildren(...rows);
  }

  /** Of memory, against the densest size. */
  get #saving() {
    const [densest] = this.#variants;
    const share = this.variant ? this.variant.standalone_bytes / densest.standalone_bytes : 1;
    return share < 1 ? `weights alone, ${format.percent(1 - share, 0)} less` : "weights alone";
  }

  /** @returns {HTMLInputElement} */
  get #slider() {
    return this.#part("slider");
  }

  /** @returns {HTMLSelectElement} */
  get #select() {
    return this.#part("variant");
  }

  /** @param {string} name @returns {any} */
  #part(name) {
    return this.element.querySelector(`.${name}`);
  }
}

/** @param {Answer} answer @param {any} chunk */
function take(answer, chunk) {
  answer.by = chunk.model;
  for (const choice of chunk.choices) {
    const tokens = (choice.logprobs?.content ?? []).map((/** @type {{token: string}} */ { token }) => token);
    if (tokens.length) {
      answer.last = performance.now();
      answer.first ||= answer.last;
    }
    answer.tokens.push(...tokens);
    answer.text += choice.delta.content ?? "";
    answer.finish = choice.finish_reason ?? answer.finish;
  }
}

/** With its spaces visible, since a token may be nothing else. @param {string} token */
function quoted(token) {
  return `“${token.replaceAll("\n", "↵")}”`;
}

/** @param {string} text */
function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}
