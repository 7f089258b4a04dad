/** The page: which view is shown, the model's name, and the question for an API key. */

import { keepKey, keyOf, onKeyJudged, onKeyWanted } from "./api.js";
import { byId, tell } from "./dom.js";
import { readLink, writeLink } from "./link.js";
import { LiveView } from "./live.js";
import { Playground } from "./playground.js";
import { onServed, refresh } from "./served.js";
import { VariantsView } from "./variants.js";

const VIEWS = ["playground", "live", "variants"];
const RETRY_MS = 2000;

const playground = new Playground();
const live = new LiveView();
const variants = new VariantsView();

/** Shows the view that the address names. */
function navigate() {
  const { view, parameters } = readLink(location.hash);
  const shown = VIEWS.includes(view) ? view : VIEWS[0];
  if (shown === "playground" && parameters.size) playground.open(parameters);
  for (const name of VIEWS) byId(name).hidden = name !== shown;
  for (const link of document.querySelectorAll("nav a")) {
    if (/** @type {HTMLElement} */ (link).dataset.view === shown) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${shown[0].toUpperCase()}${shown.slice(1)} · Secateur`;
  live.setActive(shown === "live");
  variants.setActive(shown === "variants");
}

/** Resolves once the question is answered; one question at a time. @type {Promise<boolean> | null} */
let asking = null;

/** Who does not want to give a key is not asked again before the next view. */
let isDeclined = false;

/** @param {string} told @returns {Promise<boolean>} whether there is a key to try */
function askForKey(told) {
  if (isDeclined) return Promise.resolve(false);
  asking ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    tell(byId("key-told"), told);
    byId("api-key").value = "";
    dialog.returnValue = "";
    dialog.addEventListener(
      "close",
      () => {
        asking = null;
        isDeclined = dialog.returnValue === "cancelled";
        const key = byId("api-key").value.trim();
        if (dialog.returnValue !== "cancelled" && key) keepKey("api", key);
        resolve(dialog.returnValue !== "cancelled" && key !== "");
      },
      { once: true },
    );
    dialog.addEventListener("cancel", () => (dialog.returnValue = "cancelled"), { once: true });
    dialog.showModal();
  });
  return asking;
}

/** Above every view. @param {string} words or "" @param {boolean} [wantsKey] whether a key would mend it */
function showTrouble(words, wantsKey = false) {
  tell(byId("trouble-told"), words);
  byId("give-key").hidden = !wantsKey;
  byId("trouble").hidden = words === "";
}

/** Asks until there is an answer: the server may be just starting. */
async function begin() {
  try {
    await refresh();
    showTrouble("");
  } catch (/** @type {any} */ error) {
    // Of the key is told already.
    if (error.status !== 401) showTrouble(`${error.message[0].toUpperCase()}${error.message.slice(1)}. Trying again …`);
    setTimeout(begin, RETRY_MS);
  }
}

onKeyWanted(askForKey);
onKeyJudged((refused) => {
  if (refused) showTrouble(keyOf("api") ? "The server does not know this API key." : "The server wants an API key.", true);
  else if (!byId("give-key").hidden) showTrouble("");
});
byId("give-key").addEventListener("click", async () => {
  isDeclined = false;
  // Where the key is wrong, or the server away, the page says so.
  if (await askForKey("")) refresh({ quiet: true }).catch(() => undefined);
});
onServed(({ listing }) => (byId("model").textContent = listing.model));
// The playground's link is its state: it comes back as it was left.
document.querySelector('[data-view="playground"]')?.addEventListener("click", (event) => {
  event.preventDefault();
  location.hash = writeLink({ view: "playground", parameters: playground.parameters });
});
addEventListener("keydown", ({ key }) => {
  /** @type {HTMLDetailsElement | null} */
  const menu = key === "Escape" ? document.querySelector("details.menu[open]") : null;
  if (!menu) return;
  menu.open = false;
  menu.querySelector("summary")?.focus();
});
addEventListener("hashchange", () => {
  isDeclined = false;
  navigate();
});
// Its address would be taken for a view's.
document.querySelector(".skip")?.addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});
navigate();
begin();
