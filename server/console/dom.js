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
 * A table's content: a column is its heading, or the heading and "number" for what is aligned to the right.
 * @param {HTMLTableElement} table
 * @param {string} caption for those who do not see the headline
 * @param {(string | [string, "number"])[]} columns
 * @param {(Node | string)[][]} rows the first cell of each is its heading
 */
export function fillTable(table, caption, columns, rows) {
  const kinds = columns.map((column) => (typeof column === "string" ? "" : column[1]));
  const names = columns.map((column) => (typeof column === "string" ? column : column[0]));
  const head = make("tr", {}, ...names.map((name, i) => make("th", { scope: "col", className: kinds[i] }, name)));
  const body = rows.map((row) =>
    make(
      "tr",
      {},
      ...row.map((cell, i) =>
        i === 0 ? make("th", { scope: "row" }, cell) : make("td", { className: kinds[i] }, cell),
      ),
    ),
  );
  table.replaceChildren(
    make("caption", { className: "sr" }, caption),
    make("thead", {}, head),
    make("tbody", {}, ...body),
  );
}
