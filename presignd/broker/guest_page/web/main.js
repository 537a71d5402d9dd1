// The page of an invitation: creates the parts and handles the person's input.

import { Broker } from "./broker.js";
import { Engine } from "./engine.js";
import { Failed } from "./failure.js";
import { Hashing } from "./hashing.js";
import { Keep } from "./keep.js";
import { directionOf, formats, languageOf, localeOf, wordsOf } from "./language.js";
import { fromDrop, fromHandles, fromList } from "./pick.js";
import { backoff } from "./plan.js";
import { asJson, asText, entries } from "./receipt.js";
import { View, byId, say } from "./view.js";

const language = languageOf(navigator.languages);
const words = await wordsOf(language);
const format = formats(localeOf(navigator.languages, language));
const base = location.pathname.replace(/\/+$/, "");
const broker = new Broker(base);
const keep = await Keep.open(base);
/** @type {Engine} */
let engine;
const view = new View(words, format, () => engine, () => byId("files").click());
engine = new Engine(broker, new Hashing(), keep, (upload) => {
  view.changed(upload);
  if (upload?.state === "done") refresh();
});

let note = "";
let isLimited = false;
let isRefreshing = false;

/** @param {import("./broker.js").Allowed} allowed */
function introduce(allowed) {
  note = allowed.note;
  isLimited = allowed.files_left !== null || allowed.bytes_left !== null;
  engine.checksums = allowed.checksums;
  const { limits } = words;
  const lines = [words.until(format.date(allowed.expires_at))];
  if (allowed.max_size !== null) lines.push(limits.size(format.size(allowed.max_size)));
  if (allowed.files_left !== null) lines.push(limits.files(allowed.files_left));
  if (allowed.bytes_left !== null) lines.push(limits.bytes(format.size(allowed.bytes_left)));
  say(byId("what"), note);
  say(byId("limits"), lines.join(" "));
}

/** Request what the invitation allows, until there is an answer.
 * @returns {Promise<import("./broker.js").Allowed | "gone" | "ended">} */
async function allowed() {
  for (let attempt = 1; ; attempt++) {
    try {
      return await broker.allowed();
    } catch (error) {
      const { status, code } = error instanceof Failed ? error.failure : { status: 0, code: "" };
      if (code && (status === 404 || status === 410)) return status === 404 ? "gone" : "ended";
      say(byId("note"), words.trying);
      await new Promise((resolve) => setTimeout(resolve, backoff(attempt, Math.random())));
    }
  }
}

/** Show soon how much more may be sent; where that can't be asked now, the old limits stay. */
function refresh() {
  if (!isLimited || isRefreshing) return;
  isRefreshing = true;
  setTimeout(async () => {
    isRefreshing = false;
    await broker.allowed().then(introduce, () => {});
  }, 1000);
}

/** @param {import("./engine.js").Found[]} found @param {string[]} [unread] */
function add(found, unread = []) {
  const count = engine.add(found);
  if (unread.length) say(byId("note"), words.unread(unread.length));
  else if (found.length && !count) say(byId("note"), words.nothing);
}

function listenToFiles() {
  for (const [name, input] of [["files", "pick-files"], ["folder", "pick-folder"], ["photo", "pick-photo"]]) {
    const picker = /** @type {HTMLInputElement} */ (byId(input));
    byId(name).addEventListener("click", () => picker.click());
    picker.addEventListener("change", () => {
      add(fromList(picker.files));
      picker.value = ""; // so that the same file can be chosen again
    });
  }
  // Both are accepted: where the page has moved under the pointer, a drop may follow a dragenter alone.
  for (const kind of ["dragenter", "dragover"]) {
    addEventListener(kind, (event) => {
      event.preventDefault();
      byId("drop").classList.add("over");
    });
  }
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) byId("drop").classList.remove("over");
  });
  addEventListener("drop", async (event) => {
    event.preventDefault();
    byId("drop").classList.remove("over");
    if (!event.dataTransfer || byId("drop").hidden) return;
    const { found, unread, handles } = await fromDrop(event.dataTransfer);
    add(found, unread);
    for (const handle of await handles) keep.putHandle(handle);
  });
  addEventListener("paste", (event) => {
    const files = event.clipboardData?.files;
    if (files?.length && !byId("drop").hidden) add(fromList(files));
  });
}

/** Continue files that were dropped before a reload: at once if the browser may still read them and they were not
 * paused, else after a click. */
async function goOn() {
  if (!engine.uploads.some(({ state }) => state === "absent")) return keep.forgetHandles();
  const handles = await keep.handles();
  const open = async (/** @type {boolean} */ byHand) => {
    const { found, isWhole } = await fromHandles(handles, byHand);
    engine.addAgain(found, byHand);
    const isPaused = !byHand && engine.uploads.some(({ state, wasPaused }) => state === "absent" && wasPaused);
    byId("go-on").hidden = isWhole && !(isPaused && found.length);
  };
  byId("go-on").addEventListener("click", () => open(true));
  await open(false);
}

function listenToButtons() {
  byId("pause-all").addEventListener("click", () => engine.uploads.forEach((upload) => engine.pause(upload)));
  byId("resume-all").addEventListener("click", () => {
    for (const upload of engine.uploads) if (upload.state === "paused") engine.resume(upload);
  });
  byId("save-text").addEventListener("click", () => {
    save("receipt.txt", "text/plain", asText(words.receipt, note, location.host, entries(engine.uploads)));
  });
  byId("save-json").addEventListener("click", () => {
    save("receipt.json", "application/json", asJson(note, location.host, entries(engine.uploads)));
  });
  addEventListener("beforeunload", (event) => {
    if (engine.uploads.some(({ state }) => state === "waiting")) event.preventDefault();
  });
}

/** @param {string} name @param {string} type @param {string} text */
function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function listenToPin() {
  const input = /** @type {HTMLInputElement} */ (byId("pin-input"));
  byId("pin-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await broker.unlock(input.value.trim());
    } catch (error) {
      const { status } = error instanceof Failed ? error.failure : { status: 0 };
      const said = status === 429 ? words.pinLater : status >= 400 && status < 500 ? words.pinWrong : words.trying;
      say(byId("note"), said);
      input.select();
      return;
    }
    input.value = "";
    say(byId("note"), "");
    engine.unlocked();
    view.changed();
    byId("files").focus();
  });
}

byId("unscripted").hidden = true;
document.documentElement.lang = language;
document.documentElement.dir = directionOf(language);
for (const each of document.querySelectorAll("[data-words]")) {
  const said = words[/** @type {keyof typeof words} */ (/** @type {HTMLElement} */ (each).dataset.words)];
  if (typeof said === "string") each.textContent = said;
}
byId("bar").setAttribute("aria-label", words.list);
document.title = words.title;
const found = await allowed();
say(byId("note"), "");
if (typeof found === "string") {
  engine.stopped = found;
} else {
  introduce(found);
  if (found.pin_needed && !broker.isUnlocked) engine.stopped = "pin";
}
listenToFiles();
listenToButtons();
listenToPin();
await engine.start();
byId("page").hidden = false; // a large folder takes a while to open again
if (engine.stopped === "pin") {
  byId("pin").hidden = false;
  byId("pin-input").focus();
}
await goOn();
document.documentElement.dataset.live = "yes";
