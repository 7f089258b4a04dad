/** What /v1/live has told so far, put together. Pure: a history and an answer in, a history out. */

/** As much as the server keeps. */
const SPAN_SECONDS = 15 * 60;

/** @typedef {(number | null)[]} Column one entry an interval, oldest first; null where nothing is known */

/**
 * @typedef {object} LiveVariant
 * @property {string} name
 * @property {number} sparsity
 * @property {"ready" | "degraded" | "retiring"} state
 * @property {number} running
 * @property {number} requests
 * @property {number} generation_tokens
 * @property {number} standalone_bytes
 * @property {number} marginal_bytes
 * @property {import("./api.js").Evidence | null} evidence
 * @property {Record<string, Column>} series
 *
 * @typedef {object} Live GET /v1/live (docs/reference/http.md)
 * @property {string} model
 * @property {string} version
 * @property {number} started
 * @property {number} now
 * @property {number} interval_seconds
 * @property {"ready" | "draining" | "stuck" | "dead"} state
 * @property {string | null} task
 * @property {number | null} tolerance
 * @property {number | null} safe_sparsity
 * @property {string} default_variant
 * @property {Record<string, number>} limits
 * @property {Record<string, number | null>} memory
 * @property {Record<string, Column>} series `time` among them
 * @property {LiveVariant[]} variants
 * @property {{time: number, variant: string, verdict: string, previous: string | null}[]} verdicts
 */

/** The time after which `history` knows nothing, for `?since=`; null: nothing is known. @param {Live | null} history */
export function knownUntil(history) {
  return history?.series.time.at(-1) ?? null;
}

/** Whether the server that told `answer` is another process than that of `history`. @param {Live} history @param {Live} answer */
export function isRestarted(history, answer) {
  return history.started !== answer.started;
}

/**
 * `answer`, with what `history` knew of the time before it. Variants that are gone are forgotten.
 * @param {Live | null} history
 * @param {Live} answer of the same process, to what came after `knownUntil(history)`
 * @returns {Live}
 */
export function extend(history, answer) {
  if (!history) return answer;
  const time = [...history.series.time, ...answer.series.time];
  const since = (time.at(-1) ?? 0) - SPAN_SECONDS;
  const gone = time.findIndex((at) => at !== null && at > since);
  const from = gone < 0 ? time.length : gone;
  /** @param {Record<string, Column> | undefined} before @param {Record<string, Column>} after */
  const joined = (before, after) =>
    Object.fromEntries(
      Object.entries(after).map(([name, column]) => {
        const earlier = before?.[name] ?? history.series.time.map(() => null);
        return [name, [...earlier, ...column].slice(from)];
      }),
    );
  const earlier = new Map(history.variants.map((variant) => [variant.name, variant]));
  return {
    ...answer,
    series: joined(history.series, answer.series),
    variants: answer.variants.map((variant) => ({
      ...variant,
      series: joined(earlier.get(variant.name)?.series, variant.series),
    })),
  };
}

/** The last thing that is known. @param {Column | undefined} column */
export function latest(column) {
  return column?.findLast((value) => value !== null) ?? null;
}
