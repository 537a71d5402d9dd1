// Checksums, by workers: the page stays smooth, and several parts are hashed side by side.

import { Failed } from "./failure.js";

const MOST = 3;
/** A worker that says nothing for so long, though it was asked, is replaced: Chromium has left reads without an end. */
const STALLED = 60_000;

/** @typedef {{ worker: Worker, resolve: (checksum: string) => void, reject: (error: unknown) => void }} Asked */

export class Hashing {
  /** @type {Map<number, Asked>} */
  #asked = new Map();
  /** @type {Map<number, Worker>} */
  #workers = new Map();
  /** @type {Map<Worker, ReturnType<typeof setTimeout>>} of the workers that are asked */
  #timers = new Map();
  #count = 0;
  #most = Math.min(MOST, Math.max(1, navigator.hardwareConcurrency - 1));

  /** Start the workers at once: later the network may be down, and their script can't be loaded. */
  constructor() {
    for (let at = 0; at < this.#most; at++) this.#worker(at);
  }

  /** @param {Blob} blob @param {import("./hasher.js").Algorithm} algorithm @returns {Promise<string>} `algorithm:hex` */
  checksum(blob, algorithm) {
    const id = this.#count++;
    const worker = this.#worker(id % this.#most);
    return new Promise((resolve, reject) => {
      this.#asked.set(id, { worker, resolve, reject });
      if (!this.#timers.has(worker)) this.#wait(worker);
      /** @type {import("./hasher.js").Question} */
      const question = { id, blob, algorithm };
      worker.postMessage(question);
    });
  }

  /** @param {number} at @returns {Worker} */
  #worker(at) {
    const worker = this.#workers.get(at) ?? this.#started();
    this.#workers.set(at, worker);
    return worker;
  }

  /** @returns {Worker} */
  #started() {
    const worker = new Worker(new URL("hasher.js", import.meta.url), { type: "module" });
    worker.onmessage = (/** @type {MessageEvent<import("./hasher.js").Answer>} */ { data }) => {
      const asked = this.#asked.get(data.id);
      if ("checksum" in data || "problem" in data) this.#asked.delete(data.id);
      if ("checksum" in data) asked?.resolve(data.checksum);
      else if ("problem" in data) asked?.reject(new Failed({ where: "file", status: 0, code: "unreadable" }, data.problem));
      this.#wait(worker);
    };
    // Its script can't be loaded: the network is down, or the broker restarts.
    worker.onerror = () => this.#lose(worker);
    return worker;
  }

  /** Give a worker that is asked anything its time for the next answer. @param {Worker} worker */
  #wait(worker) {
    clearTimeout(this.#timers.get(worker));
    this.#timers.delete(worker);
    if (![...this.#asked.values()].some((asked) => asked.worker === worker)) return;
    this.#timers.set(worker, setTimeout(() => this.#lose(worker), STALLED));
  }

  /** End a worker; the next call starts another one, and what it was asked is tried again. @param {Worker} worker */
  #lose(worker) {
    worker.terminate();
    for (const [at, each] of this.#workers) if (each === worker) this.#workers.delete(at);
    for (const [id, asked] of this.#asked) {
      if (asked.worker !== worker) continue;
      this.#asked.delete(id);
      asked.reject(new Failed({ where: "broker", status: 0, code: "unreachable" }));
    }
    this.#wait(worker);
  }
}
