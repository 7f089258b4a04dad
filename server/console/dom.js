/** Makes elements. The page's only way of putting text from elsewhere into the document, so never as HTML. */

/**
 * @param {string} tag
 * @param {Record<string, any>} [properties] of the element; `class` and names with a dash are attributes
 * @param {...(Node | string)} children
 * @returns {any}
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class" || name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** @param {string} id @returns {any} */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no #${id}`);
  return element;
}

/** Shows `text`, or nothing at all. @param {HTMLElement} element @param {string} text */
export function tell(element, text) {
  if (element.textContent !== text) element.textContent = text;
  element.hidden = text === "";
}

/**
 * What there is to choose from. Where that is as before nothing is touched: somebody may have the list open.
 * @param {HTMLSelectElement} select
 * @param {string[]} values
 * @param {string} chosen
 * @param {string} [all] what the value "" is called, where there is one
 */
export function fillSelect(select, values, chosen, all) {
  const options = [...(all ? [make("option", { value: "" }, all)] : []), ...values.map((value) => make("option", { value }, value))];
  const same = options.length === select.options.length && options.every(({ value }, i) => value === select.options[i].value);
  if (!same) select.replaceChildren(...options);
  if (select.value !== chosen) select.value = chosen;
}

/**
 * What an element consists of. Nodes that are as before stay the very nodes they were, with what is selected in them and
 * where somebody reads.
 * @param {Element} parent @param {Node[]} nodes
 */
export function fill(parent, nodes) {
  nodes.forEach((node, i) => {
    const old = parent.childNodes[i];
    if (!old) parent.append(node);
    else if (!old.isEqualNode(node)) old.replaceWith(node);
  });
  while (parent.childNodes.length > nodes.length) parent.lastChild?.remove();
}

/**
 * A table's content: a column is its heading, or the heading and "number" for what is aligned to the right.
 * @param {HTMLTableElement} table
 * @param {string} caption for those who do not see the headline
 * @param {(string | [string, "number"])[]} columns always the same of one table
 * @param {[string, ...(Node | string)[]][]} rows the first cell of each is its heading, by which it is known again: it
 *   moves, and of its cells those are written that have changed
 */
export function fillTable(table, caption, columns, rows) {
  const kinds = columns.map((column) => (typeof column === "string" ? "" : column[1]));
  if (!table.tBodies.length) {
    const names = columns.map((column) => (typeof column === "string" ? column : column[0]));
    const head = make("tr", {}, ...names.map((name, i) => make("th", { scope: "col", className: kinds[i] }, name)));
    table.append(make("caption", { className: "sr" }, caption), make("thead", {}, head), make("tbody"));
  }
  const [body] = table.tBodies;
  const known = new Map([...body.rows].map((row) => [row.cells[0].textContent, row]));
  const wanted = rows.map((cells) => {
    const row = known.get(cells[0]) ?? emptyRow(kinds);
    known.delete(cells[0]); // of two with one heading the other is a row of its own
    cells.forEach((cell, i) => fill(row.cells[i], [typeof cell === "string" ? document.createTextNode(cell) : cell]));
    return row;
  });
  // What is gone goes first: then no row that stays has to move for it.
  for (const row of [...body.rows]) if (!wanted.includes(row)) row.remove();
  wanted.forEach((row, i) => body.rows[i] === row || body.insertBefore(row, body.rows[i] ?? null));
}

/** @param {string[]} kinds @returns {HTMLTableRowElement} */
function emptyRow(kinds) {
  return make("tr", {}, ...kinds.map((kind, i) => (i ? make("td", { className: kind }) : make("th", { scope: "row" }))));
}
