// What the page shows. Names and notes are set as text, never as markup.

import * as plan from "./plan.js";

/** @typedef {import("./plan.js").Upload} Upload */
/** @typedef {import("./engine.js").Engine} Engine */
/** @typedef {import("./words.en.js").Words} Words */
/** @typedef {ReturnType<typeof import("./language.js").formats>} Formats */
/** @typedef {{ row: HTMLLIElement, bar: HTMLProgressElement, text: HTMLParagraphElement,
 *   buttons: Record<"pause" | "resume" | "cancel", HTMLButtonElement> }} Row */

/** Pause between two counts that a screen reader announces, in ms. */
const QUIET = 10_000;

/** @param {string} id @returns {HTMLElement} */
export const byId = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

/** @template {keyof HTMLElementTagNameMap} T
 * @param {T} name @param {string} [text] @param {string} [className] @returns {HTMLElementTagNameMap[T]} */
function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

/** Set a text only if it is another one: a screen reader announces changes.
 * @param {Element} where @param {string} text */
export function say(where, text) {
  if (where.textContent !== text) where.textContent = text;
}

export class View {
  /** @type {Map<Upload, Row>} */
  #rows = new Map();
  /** @type {Set<Upload>} */
  #changed = new Set();
  #isDue = false;
  #news = "";
  #quietUntil = 0;

  /** @param {Words} words @param {Formats} formats @param {() => Engine} engine @param {() => void} again ask for files */
  constructor(words, formats, engine, again) {
    this.words = words;
    this.formats = formats;
    this.engine = engine;
    this.again = again;
  }

  /** Show a change with the next frame. Without an upload: of all that are being sent, and the total.
   * @param {Upload} [upload] */
  changed(upload) {
    if (upload) this.#changed.add(upload);
    if (this.#isDue) return;
    this.#isDue = true;
    // A hidden tab has no frames, but continues to send.
    setTimeout(() => this.#show(), document.hidden ? 1000 : 50);
  }

  #show() {
    this.#isDue = false;
    const { uploads, meters } = this.engine();
    const listed = new Set(uploads);
    for (const upload of uploads) {
      if (!this.#rows.has(upload) || this.#changed.has(upload) || meters.has(upload)) this.#showOne(upload);
    }
    for (const upload of this.#changed) {
      if (listed.has(upload)) continue;
      this.#remove(upload);
    }
    this.#changed.clear();
    this.#showAll();
  }

  /** @param {Upload} upload */
  #remove(upload) {
    const row = this.#rows.get(upload)?.row;
    const neighbour = row?.nextElementSibling ?? row?.previousElementSibling;
    const hadFocus = row?.contains(document.activeElement);
    row?.remove();
    this.#rows.delete(upload);
    if (hadFocus) /** @type {HTMLElement} */ (neighbour?.querySelector("button:not([hidden])") ?? byId("files")).focus();
  }

  /** @param {Upload} upload */
  #showOne(upload) {
    const { row, bar, text, buttons } = this.#rows.get(upload) ?? this.#rowOf(upload);
    const { state } = upload;
    row.dataset.state = state;
    bar.hidden = state === "done" || state === "failed";
    bar.value = upload.size ? plan.sentOf(upload) / upload.size : Number(upload.stored);
    say(text, this.#textOf(upload));
    buttons.pause.hidden = state !== "waiting";
    buttons.resume.hidden = !["paused", "failed", "absent"].includes(state);
    buttons.cancel.hidden = state === "done";
    const action = state === "paused" ? this.words.resume : upload.file ? this.words.retry : this.words.again;
    say(buttons.resume, action);
    buttons.resume.setAttribute("aria-label", this.words.of(action, upload.path));
  }

  /** @param {Upload} upload @returns {string} */
  #textOf(upload) {
    const { words, formats } = this;
    const size = formats.size(upload.size);
    if (upload.state === "done") return `${words.done} · ${size}`;
    if (upload.state === "failed") return `${words.failed} · ${words.problems[upload.problem] ?? words.problem(upload.problem)}`;
    const sent = words.sent(formats.size(plan.sentOf(upload)), size);
    if (upload.state === "absent") return `${sent} · ${words.absent}`;
    if (upload.state === "paused") return `${words.paused} · ${sent}`;
    if (upload.problem && !upload.live.size) return `${sent} · ${words.trying}`;
    if (upload.stored) return `${words.checking} · ${size}`;
    if (!upload.busy.size) return `${words.waiting} · ${sent}`;
    const meter = this.engine().meters.get(upload);
    return [sent, ...this.#pace(meter?.samples ?? [], upload.size - plan.sentOf(upload))].join(" · ");
  }

  /** @param {import("./plan.js").Sample[]} samples @param {number} left @returns {string[]} */
  #pace(samples, left) {
    const rate = plan.rateOf(samples);
    const seconds = plan.secondsLeft(left, rate);
    if (seconds === null) return [];
    return [this.words.rate(this.formats.size(rate)), this.words.left(this.formats.time(seconds))];
  }

  /** @param {Upload} upload @returns {Row} */
  #rowOf(upload) {
    const row = element("li");
    const name = element("bdi", upload.path, "name");
    name.id = `name-${upload.id}`;
    const bar = element("progress");
    bar.max = 1;
    bar.setAttribute("aria-labelledby", name.id);
    const text = element("p");
    const line = element("div", "", "buttons");
    const button = (/** @type {string} */ words, /** @type {() => void} */ act) => {
      const made = element("button", words);
      made.type = "button";
      made.setAttribute("aria-label", this.words.of(words, upload.path));
      made.addEventListener("click", act);
      line.append(made);
      return made;
    };
    const buttons = {
      pause: button(this.words.pause, () => this.engine().pause(upload)),
      resume: button(this.words.resume, () => (upload.file ? this.engine().resume(upload) : this.again())),
      cancel: button(this.words.cancel, () => this.engine().cancel(upload)),
    };
    row.append(name, bar, text, line);
    byId("list").append(row);
    const made = { row, bar, text, buttons };
    this.#rows.set(upload, made);
    return made;
  }

  #showAll() {
    const { words, formats } = this;
    const { uploads, meter, stopped } = this.engine();
    const done = uploads.filter(({ state }) => state === "done").length;
    let [size, sent] = [0, 0];
    for (const upload of uploads) {
      if (upload.state === "failed") continue;
      size += upload.size;
      sent += plan.sentOf(upload);
    }
    byId("work").hidden = !uploads.length;
    const bar = /** @type {HTMLProgressElement} */ (byId("bar"));
    bar.value = size ? sent / size : Number(done > 0);
    const pace = sent < size ? this.#pace(meter.samples, size - sent) : [];
    say(byId("all"), [words.count(done, uploads.length), words.sent(formats.size(sent), formats.size(size)), ...pace].join(" · "));
    byId("pause-all").hidden = !uploads.some(({ state }) => state === "waiting");
    byId("resume-all").hidden = !uploads.some(({ state }) => state === "paused");
    byId("receipt").hidden = done === 0;
    byId("drop").hidden = byId("choose").hidden = stopped !== "";
    byId("pin").hidden = stopped !== "pin";
    if (stopped === "ended" || stopped === "gone") this.#tell(words[stopped]);
    else this.#tell(this.#newsOf(done, uploads.length), uploads.some(({ state }) => state === "waiting"));
  }

  /** Show news, once; another text that was set since stays until the news changes.
   * @param {string} news @param {boolean} [often] it changes often: a screen reader should not say each change */
  #tell(news, often = false) {
    if (news === this.#news || (often && Date.now() < this.#quietUntil)) return;
    say(byId("note"), news);
    this.#news = news;
    this.#quietUntil = Date.now() + QUIET;
  }

  /** @param {number} done @param {number} all @returns {string} */
  #newsOf(done, all) {
    if (!done) return "";
    return done === all ? this.words.all : this.words.count(done, all);
  }
}
