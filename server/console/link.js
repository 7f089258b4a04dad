/** The page's state in the URL's fragment, so that a link is all it takes to share it. */

/**
 * @typedef {object} Link
 * @property {string} view
 * @property {URLSearchParams} parameters
 */

/** `#playground?prompt=…&size=…`. @param {string} fragment @returns {Link} */
export function readLink(fragment) {
  const [view, query = ""] = fragment.replace(/^#/, "").split(/\?(.*)/s);
  return { view, parameters: new URLSearchParams(query) };
}

/** @param {Link} link */
export function writeLink({ view, parameters }) {
  const query = parameters.toString();
  return `#${view}${query ? `?${query}` : ""}`;
}

/** Puts text on the clipboard. Browsers keep their API for it from plain-http pages of other machines. */
export async function copy(/** @type {string} */ text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const field = document.createElement("textarea");
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}
