// Checksums, by workers: the page stays smooth, and several parts are hashed side by side.

import { Failed } from "./failure.js";

const MOST = 3;

/** @typedef {{ worker: Worker, resolve: (checksum: string) => void, reject: (error: unknown) => void }} Asked */

export class Hashing {
  /** @type {Map<number, Asked>} */
  #asked = new Map();
  /** @type {Map<number, Worker>} */
  #workers = new Map();
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
      /** @type {import("./hasher.js").Question} */
      const question = { id, blob, algorithm };
      worker.postMessage(question);
    });
  }

  /** @param {number} at @returns {Worker} */
  #worker(at) {
    const worker = this.#workers.get(at) ?? this.#started(at);
    this.#workers.set(at, worker);
    return worker;
  }

  /** @param {number} at @returns {Worker} */
  #started(at) {
    const worker = new Worker(new URL("hasher.js", import.meta.url), { type: "module" });
    worker.onmessage = (/** @type {MessageEvent<import("./hasher.js").Answer>} */ { data }) => {
      const asked = this.#asked.get(data.id);
      this.#asked.delete(data.id);
      if ("checksum" in data) asked?.resolve(data.checksum);
      else asked?.reject(new Failed({ where: "file", status: 0, code: "unreadable" }, data.problem));
    };
    // Its script can't be loaded: the network is down, or the broker restarts. The next call starts another one.
    worker.onerror = () => {
      if (this.#workers.get(at) === worker) this.#workers.delete(at);
      for (const [id, asked] of this.#asked) {
        if (asked.worker !== worker) continue;
        this.#asked.delete(id);
        asked.reject(new Failed({ where: "broker", status: 0, code: "unreachable" }));
      }
    };
    return worker;
  }
}
