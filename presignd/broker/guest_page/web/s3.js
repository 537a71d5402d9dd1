// Requests to the store, by grants. The bytes go from the file to the store; the page never holds a whole file.

import { Failed, retryAfter } from "./failure.js";

/** A request without progress for so long is given up: a laptop that slept leaves dead connections. */
const STALLED = 60_000;
/** Headers that a browser sets itself. */
const OWN = new Set(["content-length", "host"]);

/** @typedef {{ etag: string, text: string }} Answer */

/** @param {import("./broker.js").Grant} grant @param {Blob | string | null} body @param {AbortSignal} signal
 * @param {(sent: number) => void} [progress] @returns {Promise<Answer>} */
export function send(grant, body, signal, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    const wait = () => {
      clearTimeout(timer);
      timer = setTimeout(() => request.abort(), STALLED);
    };
    const abort = () => request.abort();
    const fail = () => reject(new Failed({ where: "store", status: 0, code: "unreachable" }));
    request.open(grant.method, grant.url);
    for (const [name, value] of Object.entries(grant.headers)) {
      if (!OWN.has(name.toLowerCase())) request.setRequestHeader(name, value);
    }
    request.upload.onprogress = ({ loaded }) => {
      wait();
      progress?.(loaded);
    };
    request.onprogress = wait;
    request.onerror = request.onabort = fail;
    request.onload = () => {
      const failure = failureOf(request);
      if (failure) reject(new Failed(failure));
      else resolve({ etag: headerOf(request, "etag"), text: request.responseText });
    };
    request.onloadend = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", abort);
    };
    if (signal.aborted) {
      fail();
      return;
    }
    signal.addEventListener("abort", abort);
    wait();
    request.send(body);
  });
}

/** @param {XMLHttpRequest} request @param {string} name in lower case @returns {string} "" too where the store does not
 * expose the header to pages: reading it by name would be an error in the console */
const headerOf = (request, name) =>
  new RegExp(`^${name}: *(.*)$`, "im").exec(request.getAllResponseHeaders())?.[1].trim() ?? "";

/** @param {XMLHttpRequest} request @returns {import("./plan.js").Failure | null} */
function failureOf(request) {
  const isError = request.status < 200 || request.status > 299;
  // A store may begin to answer 200 to Complete before it knows, and then send an error in the body.
  const code = /<Error>[\s\S]*?<Code>([^<]{1,100})<\/Code>/.exec(request.responseText)?.[1] ?? "";
  if (!isError && !code) return null;
  const after = retryAfter(headerOf(request, "retry-after"));
  return { where: "store", status: isError ? request.status : 500, code, retryAfter: after };
}

/** @param {string} text @returns {string} "" if it is not in the answer */
export const uploadIdOf = (text) => tagOf(new DOMParser().parseFromString(text, "text/xml"), "UploadId");

/** @param {string} text @returns {{ parts: { number: number, etag: string, size: number }[], next: number }} `next` is
 * the part after which a further list begins, 0 at the end */
export function listOf(text) {
  const document = new DOMParser().parseFromString(text, "text/xml");
  const parts = Array.from(document.getElementsByTagNameNS("*", "Part"), (part) => ({
    number: Number(tagOf(part, "PartNumber")),
    etag: tagOf(part, "ETag"),
    size: Number(tagOf(part, "Size")),
  }));
  const isCut = tagOf(document, "IsTruncated") === "true";
  return { parts, next: isCut ? Number(tagOf(document, "NextPartNumberMarker")) : 0 };
}

/** @param {Document | Element} within @param {string} name */
const tagOf = (within, name) => within.getElementsByTagNameNS("*", name)[0]?.textContent?.trim() ?? "";

/** @param {import("./plan.js").Part[]} parts @returns {string} the body of Complete */
export function completion(parts) {
  const items = parts.map(({ etag }, at) => `<Part><PartNumber>${at + 1}</PartNumber><ETag>${escaped(etag)}</ETag></Part>`);
  return `<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">${items.join("")}</CompleteMultipartUpload>`;
}

/** @param {string} text */
const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");
