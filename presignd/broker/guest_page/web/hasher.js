// A worker: the checksum of a slice of a file, read a piece at a time, off the page's own thread.

import { Crc64 } from "./crc64.js";
import { Md5 } from "./md5.js";

const PIECE = 2 ** 20;
const ALGORITHMS = { md5: Md5, crc64nvme: Crc64 };

/** @typedef {keyof typeof ALGORITHMS} Algorithm */
/** @typedef {{ id: number, blob: Blob, algorithm: Algorithm }} Question */
/** @typedef {{ id: number, checksum: string } | { id: number, problem: string }} Answer */

/** @param {Question} question @returns {Promise<string>} as `algorithm:hex` */
async function checksum({ blob, algorithm }) {
  const sum = new ALGORITHMS[algorithm]();
  for (let at = 0; at < blob.size; at += PIECE) {
    sum.update(new Uint8Array(await blob.slice(at, at + PIECE).arrayBuffer()));
  }
  return `${algorithm}:${sum.digest()}`;
}

addEventListener("message", async (/** @type {MessageEvent<Question>} */ { data }) => {
  /** @type {Answer} */
  let answer;
  try {
    answer = { id: data.id, checksum: await checksum(data) };
  } catch (error) {
    answer = { id: data.id, problem: String(error) };
  }
  postMessage(answer);
});
