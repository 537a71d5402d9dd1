// The calls of an invitation (docs/broker.md): JSON below the page's own address.

import { Failed, retryAfter } from "./failure.js";

const TIMEOUT = 60_000;
const MOST = 100;

/** @typedef {{ note: string, expires_at: string, max_size: number | null, files_left: number | null,
 *   bytes_left: number | null, pin_needed: boolean, checksums: Checksums }} Allowed */
/** @typedef {import("./hasher.js").Algorithm} Algorithm */
/** @typedef {{ put: Algorithm, parts: Algorithm }} Checksums which the store was seen to verify */
/** @typedef {{ method: string, url: string, headers: Record<string, string> }} Grant */
/** @typedef {{ ticket: string, operation?: string, upload_id?: string, part_number?: number, checksum?: string }} Asked */
/** @typedef {{ ticket: string, part_size: number }} Ticket */
/** @typedef {{ received: boolean, size: number, checksum: string }} Received */
/** @typedef {{ error: { code: string, message: string } }} Refused */

export class Broker {
  /** @type {{ asked: Asked, resolve: (grant: Grant) => void, reject: (error: unknown) => void }[]} */
  #queue = [];
  #pass = "";

  /** @param {string} base the page's address */
  constructor(base) {
    this.base = base;
    this.#pass = sessionStorage.getItem(`pass ${base}`) ?? "";
  }

  /** @returns {Promise<Allowed>} */
  allowed() {
    return this.#call("", undefined);
  }

  /** @param {string} pin */
  async unlock(pin) {
    const { pass } = await this.#call("/pin", { pin });
    this.#pass = pass;
    sessionStorage.setItem(`pass ${this.base}`, pass);
  }

  get isUnlocked() {
    return this.#pass !== "";
  }

  lock() {
    this.#pass = "";
    sessionStorage.removeItem(`pass ${this.base}`);
  }

  /** @param {{ path: string, size: number, type: string }[]} files @returns {Promise<(Ticket | Refused)[]>} */
  async files(files) {
    return (await this.#call("/files", { files })).files;
  }

  /** Sign one request. Concurrent requests share one call.
   * @param {Asked} asked @returns {Promise<Grant>} */
  sign(asked) {
    return new Promise((resolve, reject) => {
      if (this.#queue.push({ asked, resolve, reject }) === 1) setTimeout(() => this.#flush(), 0);
    });
  }

  async #flush() {
    const batch = this.#queue.splice(0, MOST);
    if (this.#queue.length) setTimeout(() => this.#flush(), 0);
    try {
      const { grants } = await this.#call("/sign", { requests: batch.map(({ asked }) => asked) });
      batch.forEach(({ resolve, reject }, at) => {
        const { error } = grants[at];
        if (error) reject(refusal(200, error));
        else resolve(grants[at]);
      });
    } catch (error) {
      for (const { reject } of batch) reject(error);
    }
  }

  /** @param {string} ticket @param {string[]} parts their checksums @returns {Promise<Received>} */
  done(ticket, parts) {
    return this.#call("/done", parts.length ? { ticket, parts } : { ticket });
  }

  /** @param {string} ticket */
  cancel(ticket) {
    return this.#call("/cancel", { ticket });
  }

  /** @param {string} path @param {object} [body] @returns {Promise<any>} */
  async #call(path, body) {
    /** @type {Record<string, string>} */
    const headers = { Accept: "application/json" };
    if (body) headers["Content-Type"] = "application/json";
    if (this.#pass) headers["X-Pass"] = this.#pass;
    let response, text;
    try {
      response = await fetch(this.base + path, {
        method: body ? "POST" : "GET",
        headers,
        body: body && JSON.stringify(body),
        cache: "no-store",
        signal: AbortSignal.timeout(TIMEOUT),
      });
      text = await response.text();
    } catch (error) {
      throw new Failed({ where: "broker", status: 0, code: "unreachable" }, String(error));
    }
    const document = parsed(text);
    if (response.ok && document && !document.error) return document;
    if (response.ok && !text) return {};
    const after = retryAfter(response.headers.get("Retry-After"));
    // An answer that is not the broker's, from a proxy or a network's login page, counts as none.
    if (!document) throw new Failed({ where: "broker", status: response.ok ? 0 : response.status, code: "", retryAfter: after });
    throw refusal(response.status, document.error ?? {}, after);
  }
}

/** @param {number} status @param {{ code?: string, message?: string }} error @param {number} [after] */
const refusal = (status, { code = "", message }, after) =>
  new Failed({ where: "broker", status, code, retryAfter: after }, message);

/** @param {string} text @returns {any} null if it is not JSON */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
