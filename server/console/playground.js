/** One prompt, up to four sizes side by side, their answers as they come and where they part. */

import { keyOf } from "./api.js";
import { byId, fillSelect, tell } from "./dom.js";
import { divergence } from "./divergence.js";
import { Lane } from "./lane.js";
import { copy, writeLink } from "./link.js";
import { onServed, refresh } from "./served.js";
import { curlCommand, pythonProgram, requestBody } from "./snippets.js";

const MAX_LANES = 4;
const TOLD_MS = 2000;
/** Browsers let a page change its address a hundred times in half a minute, or less; somebody types faster. */
const ADDRESS_MS = 300;
/** A task's own kind of question, for who has none at hand. @type {Record<string, string>} */
const EXAMPLES = {
  arithmetic: "Tom has 3 boxes with 12 eggs in each. Tom sells 7 of the eggs. How many eggs does Tom have now?",
  gsm8k: "A baker sells 24 rolls at 3 dollars for 4 rolls. How much money does he make?",
  humaneval: "Write a Python function that returns the n-th Fibonacci number.",
  mbpp: "Write a Python function that returns the n-th Fibonacci number.",
};

/** @typedef {import("./served.js").Served} Served */

export class Playground {
  /** @type {Lane[]} */
  #lanes = [];
  /** @type {Served | null} */
  #served = null;
  /** @type {AbortController | null} */
  #running = null;
  #drawing = false;
  /** @type {number | undefined} */
  #addressing;
  /** Sizes that a link asked for, until it is known what is served. @type {string[]} */
  #wanted = [];

  constructor() {
    byId("ask").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      this.#run();
    });
    byId("ask").addEventListener("input", () => this.#changed());
    this.#prompt.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
    });
    byId("stop").addEventListener("click", () => this.#running?.abort());
    byId("add-lane").addEventListener("click", () => this.#addLane(this.#unusedSize()));
    byId("copy-link").addEventListener("click", () => this.#copied(new URL(this.#link, location.href).href, "Link copied."));
    for (const button of document.querySelectorAll("[data-copy]")) {
      const source = byId(/** @type {HTMLElement} */ (button).dataset.copy ?? "");
      button.addEventListener("click", () => this.#copied(source.textContent, "Copied."));
    }
    byId("code-lane").addEventListener("change", () => this.#writeCode());
    onServed((served) => this.#offer(served));
  }

  /** Takes up the state that a link says; its own, it has already. @param {URLSearchParams} parameters */
  open(parameters) {
    if (parameters.toString() === this.parameters.toString()) return;
    this.#running?.abort();
    this.#prompt.value = parameters.get("prompt") ?? this.#prompt.value;
    byId("max-tokens").value = parameters.get("max_tokens") ?? byId("max-tokens").value;
    byId("allow-unsafe").checked = parameters.get("allow_unsafe") === "1";
    this.#wanted = parameters.getAll("size").slice(0, MAX_LANES);
    if (this.#served) this.#lay(this.#wanted);
  }

  /** The state of the view, as its link says it. */
  get parameters() {
    const parameters = new URLSearchParams();
    if (this.#prompt.value) parameters.set("prompt", this.#prompt.value);
    for (const lane of this.#lanes) parameters.append("size", lane.size);
    parameters.set("max_tokens", byId("max-tokens").value);
    if (byId("allow-unsafe").checked) parameters.set("allow_unsafe", "1");
    return parameters;
  }

  get #link() {
    return writeLink({ view: "playground", parameters: this.parameters });
  }

  /** @returns {HTMLTextAreaElement} */
  get #prompt() {
    return byId("prompt");
  }

  /** @param {Served} served */
  #offer(served) {
    const isFirst = this.#served === null;
    this.#served = served;
    const { data, probes } = served.listing;
    if (isFirst) {
      if (!this.#prompt.value) this.#prompt.value = EXAMPLES[probes.task ?? ""] ?? "";
      this.#lay(this.#wanted);
    } else {
      for (const lane of this.#lanes) lane.offer(data, lane.size);
      this.#changed();
    }
  }

  /** Lanes anew, in place of those that are there. @param {string[]} sizes if none, those that show the most */
  #lay(sizes) {
    for (const lane of this.#lanes) lane.element.remove();
    this.#lanes = [];
    for (const size of sizes.length || !this.#served ? sizes : defaultSizes(this.#served)) this.#addLane(size);
  }

  /** @param {string} size */
  #addLane(size) {
    const lane = new Lane({
      onSize: () => this.#changed(),
      onProgress: () => this.#draw(),
      onRemove: (lane) => {
        this.#lanes = this.#lanes.filter((other) => other !== lane);
        lane.stop();
        lane.element.remove();
        byId("add-lane").focus();
        this.#changed();
      },
    });
    this.#lanes.push(lane);
    byId("lanes").append(lane.element);
    lane.offer(this.#served?.listing.data ?? [], size);
    this.#changed();
  }

  /** The sparsest size that is not on show, or else the sparsest. */
  #unusedSize() {
    const sizes = (this.#served?.listing.data ?? []).map(({ id }) => id).reverse();
    return sizes.find((id) => !this.#lanes.some((lane) => lane.size === id)) ?? sizes[0];
  }

  /** Brings everything that says the state up to date with it. */
  #changed() {
    for (const lane of this.#lanes) lane.allowRemoval(this.#lanes.length > 1);
    byId("add-lane").disabled = this.#lanes.length === MAX_LANES;
    byId("run").disabled = !this.#lanes.some((lane) => lane.variant);
    this.#writeCode();
    this.#draw();
    clearTimeout(this.#addressing);
    this.#addressing = setTimeout(() => this.#writeAddress(), ADDRESS_MS);
  }

  #writeAddress() {
    if (!this.#served || byId("playground").hidden) return;
    try {
      history.replaceState(null, "", this.#link);
    } catch {
      // Too often for this browser, or too long: the next change tries again, and the page is the same without it.
    }
  }

  async #run() {
    this.#running?.abort();
    const run = new AbortController();
    this.#running = run;
    this.#toggle(true);
    tell(byId("ask-status"), "Answering …");
    const asked = this.#lanes.map((lane) => {
      const body = this.#body(lane);
      return body && lane.ask(body, run.signal);
    });
    await Promise.all(asked);
    if (this.#running !== run) return;
    this.#running = null;
    this.#toggle(false);
    tell(byId("ask-status"), this.#outcome(run.signal.aborted));
    // What has been measured by now. Where the server is away the lanes have said so.
    refresh({ quiet: true }).catch(() => undefined);
  }

  /** How a run went. Meanwhile lanes may have come, gone, or been given another size. @param {boolean} aborted */
  #outcome(aborted) {
    const all = this.#lanes.length;
    const failed = this.#lanes.filter((lane) => lane.answer?.error).length;
    const answered = this.#lanes.filter((lane) => lane.answer?.ended).length;
    if (aborted || failed + answered === 0) return "Stopped.";
    if (failed) return `${failed} of ${all} could not answer.`;
    return answered === all ? "All have answered." : `${answered} of ${all} have answered.`;
  }

  /** @param {boolean} running */
  #toggle(running) {
    const hadFocus = document.activeElement === byId(running ? "run" : "stop");
    byId("run").hidden = running;
    byId("stop").hidden = !running;
    if (hadFocus) byId(running ? "stop" : "run").focus();
  }

  /** @param {Lane} lane */
  #body(lane) {
    if (!this.#served || !lane.variant) return null;
    const { model, data } = this.#served.listing;
    const question = {
      model,
      prompt: this.#prompt.value,
      maxTokens: Number(byId("max-tokens").value),
      allowUnsafe: byId("allow-unsafe").checked,
    };
    return requestBody(question, lane.variant, data);
  }

  /** Draws all lanes in the next frame, however many tokens come before it. */
  #draw() {
    if (this.#drawing) return;
    this.#drawing = true;
    requestAnimationFrame(() => {
      this.#drawing = false;
      const reference = densest(this.#lanes);
      for (const lane of this.#lanes) {
        const compared = lane !== reference && reference?.answer && lane.answer;
        const leaves = compared ? divergence(reference.answer, lane.answer) : null;
        const agrees = compared && !leaves && reference.answer.ended && lane.answer.ended;
        lane.show(leaves, compared ? reference.size : null, Boolean(agrees));
      }
    });
  }

  #writeCode() {
    const select = byId("code-lane");
    const sizes = [...new Set(this.#lanes.map((lane) => lane.size))];
    const chosen = sizes.includes(select.value) ? select.value : sizes[sizes.length - 1];
    fillSelect(select, sizes, chosen);
    const lane = this.#lanes.find((lane) => lane.size === chosen);
    const body = lane && this.#body(lane);
    const wantsKey = keyOf("api") !== "";
    byId("curl-code").textContent = body ? curlCommand(location.origin, body, wantsKey) : "";
    byId("python-code").textContent = body ? pythonProgram(location.origin, body, wantsKey) : "";
  }

  /** @param {string} text @param {string} told */
  async #copied(text, told) {
    await copy(text);
    const status = byId("ask-status");
    tell(status, told);
    setTimeout(() => status.textContent === told && tell(status, ""), TOLD_MS);
  }
}

/** The dense size and the sparsest that the server gives to everybody. @param {Served} served */
function defaultSizes({ listing, safeSparsity }) {
  const open = listing.data.filter(({ state, sparsity }) => state === "ready" && sparsity <= (safeSparsity ?? 1));
  const sizes = open.length ? open : listing.data;
  return [...new Set([sizes[0].id, sizes[sizes.length - 1].id])];
}

/** What the others are compared with. @param {Lane[]} lanes */
function densest(lanes) {
  const [first] = lanes
    .filter((lane) => lane.variant)
    .sort((one, other) => (one.variant?.sparsity ?? 0) - (other.variant?.sparsity ?? 0));
  return first;
}
