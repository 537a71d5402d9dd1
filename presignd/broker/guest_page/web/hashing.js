// Checksums, by workers: the page stays smooth, and several parts are hashed side by side.

import { Failed } from "./failure.js";

const MOST = 3;

export class Hashing {
  /** @type {Map<number, { resolve: (checksum: string) => void, reject: (error: unknown) => void }>} */
  #asked = new Map();
  /** @type {Worker[]} */
  #workers = [];
  #count = 0;

  /** @param {Blob} blob @param {import("./hasher.js").Algorithm} algorithm @returns {Promise<string>} `algorithm:hex` */
  checksum(blob, algorithm) {
    const id = this.#count++;
    return new Promise((resolve, reject) => {
      this.#asked.set(id, { resolve, reject });
      /** @type {import("./hasher.js").Question} */
      const question = { id, blob, algorithm };
      this.#worker(id).postMessage(question);
    });
  }

  /** @param {number} id @returns {Worker} */
  #worker(id) {
    const at = id % Math.min(MOST, Math.max(1, navigator.hardwareConcurrency - 1));
    return (this.#workers[at] ??= this.#started());
  }

  #started() {
    const worker = new Worker(new URL("hasher.js", import.meta.url), { type: "module" });
    worker.onmessage = (/** @type {MessageEvent<import("./hasher.js").Answer>} */ { data }) => {
      const asked = this.#asked.get(data.id);
      this.#asked.delete(data.id);
      if ("checksum" in data) asked?.resolve(data.checksum);
      else asked?.reject(new Failed({ where: "file", status: 0, code: "unreadable" }, data.problem));
    };
    worker.onerror = () => {
      for (const { reject } of this.#asked.values()) reject(new Failed({ where: "file", status: 0, code: "no_worker" }));
      this.#asked.clear();
    };
    return worker;
  }
}
