/** Where one answer leaves another. Pure: tokens and texts in, a place out. */

/**
 * @typedef {object} Said
 * @property {string[]} tokens each token's own text
 * @property {string} text of the answer so far
 * @property {boolean} ended
 *
 * @typedef {object} Divergence
 * @property {number} index of the first token that differs, from 0
 * @property {number} start, in the text of the answer that leaves
 * @property {number} end
 * @property {string | null} instead what the reference says there; null where it has ended
 */

/**
 * The first token at which `answer` is not what `reference` is; null where there is none, or none yet.
 * @param {Said} reference
 * @param {Said} answer
 * @returns {Divergence | null}
 */
export function divergence(reference, answer) {
  const both = Math.min(reference.tokens.length, answer.tokens.length);
  let index = 0;
  while (index < both && reference.tokens[index] === answer.tokens[index]) index += 1;
  if (index === both) {
    const goesOn = reference.tokens.length > both ? answer.ended : reference.ended;
    if (reference.tokens.length === answer.tokens.length || !goesOn) return null;
  }
  const [start, end] = place(answer, index, commonPrefix(reference.text, answer.text));
  return { index, start, end, instead: reference.tokens[index] ?? null };
}

/**
 * A token's place in the text. Tokens that are parts of a character do not add up to the text: then it is the first
 * character that differs.
 * @param {Said} answer @param {number} index @param {number} differs
 */
function place(answer, index, differs) {
  const before = answer.tokens.slice(0, index).join("");
  const token = answer.tokens[index] ?? "";
  if (answer.text.startsWith(before + token)) return [before.length, before.length + token.length];
  const start = Math.min(differs, answer.text.length);
  const [character = ""] = answer.text.slice(start);
  return [start, start + character.length];
}

/** @param {string} one @param {string} other */
function commonPrefix(one, other) {
  let length = 0;
  while (length < one.length && one[length] === other[length]) length += 1;
  return length;
}
