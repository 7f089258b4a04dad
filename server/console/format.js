/** Numbers as people read them. Knows units; nothing of the page. */

export const NOTHING = "–";

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

/** @param {number | null | undefined} value */
export function count(value) {
  return value == null ? NOTHING : whole.format(value);
}

/** Three digits where the number is small: 0.87, 9.4, 128, 1,204. @param {number | null | undefined} value */
export function rate(value) {
  if (value == null) return NOTHING;
  return Math.abs(value) < 100 ? short.format(value) : whole.format(value);
}

/** A share of 1 in percent. @param {number | null | undefined} share @param {number} [digits] */
export function percent(share, digits = 1) {
  return share == null ? NOTHING : `${(100 * share).toFixed(digits)} %`;
}

/** A difference of shares. @param {number} share */
export function points(share) {
  return `${(100 * share).toFixed(1)} pts`;
}

/** A share of 1 as short as it can be said: 0 %, 12.5 %, 0.02 %. @param {number | null | undefined} share */
export function share(share) {
  return share == null ? NOTHING : `${short.format(100 * share)} %`;
}

/** @param {number | null | undefined} value */
export function bytes(value) {
  if (value == null) return NOTHING;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${rate(value)} ${units[unit]}`;
}

/** Of a latency: 840 µs, 12.4 ms, 3.1 s. @param {number | null | undefined} seconds */
export function latency(seconds) {
  if (seconds == null) return NOTHING;
  if (seconds === 0) return "0 s";
  if (seconds < 1e-3) return `${rate(1e6 * seconds)} µs`;
  return seconds < 1 ? `${rate(1e3 * seconds)} ms` : `${rate(seconds)} s`;
}

/** Of something that goes on: 8 s, 12 min, 3 h, 2 d. @param {number | null | undefined} seconds */
export function duration(seconds) {
  if (seconds == null) return NOTHING;
  if (seconds < 90) return `${whole.format(seconds)} s`;
  if (seconds < 90 * 60) return `${whole.format(seconds / 60)} min`;
  return seconds < 48 * 3600 ? `${whole.format(seconds / 3600)} h` : `${whole.format(seconds / 86400)} d`;
}

/** @param {number} seconds since the epoch */
export function time(seconds) {
  return new Date(1000 * seconds).toLocaleTimeString("en-GB");
}

/** The day too, where it is not today. @param {number} seconds since the epoch */
export function moment(seconds) {
  const date = new Date(1000 * seconds);
  const today = date.toDateString() === new Date().toDateString();
  return today ? time(seconds) : `${date.toLocaleDateString("en-CA")} ${time(seconds)}`;
}

/**
 * "94.8–97.3 %, 400 items"; says so where nothing has been measured.
 * @param {import("./api.js").Evidence | null} evidence
 */
export function interval(evidence) {
  if (evidence == null || evidence.accuracy == null) return "not measured";
  const low = (100 * evidence.accuracy_low).toFixed(1);
  const items = `${count(evidence.items)} ${evidence.items === 1 ? "item" : "items"}`;
  return `${low}–${percent(evidence.accuracy_high)}, ${items}`;
}
