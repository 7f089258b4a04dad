/** What the server serves, as the last answer said; shared by the views. */

import { call } from "./api.js";

/** Larger than any time: /v1/live then tells what is, and no history. */
const NO_HISTORY = 1e12;

/**
 * @typedef {object} Served
 * @property {import("./api.js").Listing} listing
 * @property {number | null} safeSparsity beyond it a size is for those who insist
 */

/** @type {Set<(served: Served) => void>} */
const listeners = new Set();
/** @type {Served | null} */
let last = null;
let told = "";

/** Calls `listener` with what is known, and whenever that changes but for the age of evidence. @param {(served: Served) => void} listener */
export function onServed(listener) {
  listeners.add(listener);
  if (last) listener(last);
}

/** Asks again. @param {{quiet?: boolean}} [options] as of `call` @returns {Promise<Served>} */
export async function refresh(options) {
  const [listing, live] = await Promise.all([
    call("/v1/variants", options),
    call(`/v1/live?since=${NO_HISTORY}`, options),
  ]);
  const served = { listing, safeSparsity: live.safe_sparsity };
  // Evidence is older each time. The views that tell its age ask for themselves.
  const text = JSON.stringify(served, (name, value) => (name === "age_seconds" ? undefined : value));
  if (text !== told || !last) {
    last = served;
    told = text;
    for (const listener of listeners) listener(served);
  }
  return served;
}
