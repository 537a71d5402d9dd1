// MD5, which S3 checks by Content-MD5 and the Web's own crypto does not have. The steps are written out, because a loop
// over tables of them takes three times as long.

import { hex } from "./hex.js";

const BLOCK = 64;

/** The MD5 of bytes that come in pieces. */
export class Md5 {
  #state = new Int32Array([0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476]);
  #rest = new Uint8Array(BLOCK);
  #length = 0;

  /** @param {Uint8Array} bytes */
  update(bytes) {
    let at = 0;
    const held = this.#length % BLOCK;
    this.#length += bytes.length;
    if (held) {
      at = Math.min(BLOCK - held, bytes.length);
      this.#rest.set(bytes.subarray(0, at), held);
      if (held + at < BLOCK) return;
      this.#blocks(this.#rest);
    }
    const whole = at + Math.floor((bytes.length - at) / BLOCK) * BLOCK;
    if (whole > at) this.#blocks(bytes.subarray(at, whole));
    this.#rest.set(bytes.subarray(whole));
  }

  /** @returns {string} the checksum in hex; nothing may be added after it */
  digest() {
    const bits = this.#length * 8;
    const held = this.#length % BLOCK;
    const end = new Uint8Array(held < 56 ? BLOCK : 2 * BLOCK);
    end.set(this.#rest.subarray(0, held));
    end[held] = 0x80;
    const view = new DataView(end.buffer);
    view.setUint32(end.length - 8, bits >>> 0, true);
    view.setUint32(end.length - 4, Math.floor(bits / 2 ** 32), true);
    this.#blocks(end);
    return hex(new Uint8Array(this.#state.buffer));
  }

  /** @param {Uint8Array} bytes whole blocks */
  #blocks(bytes) {
    const aligned = bytes.byteOffset % 4 ? bytes.slice() : bytes;
    // Words of a typed array are little-endian wherever browsers run, as MD5 wants them.
    const words = new Int32Array(aligned.buffer, aligned.byteOffset, aligned.length / 4);
    for (let at = 0; at < words.length; at += 16) block(this.#state, words, at);
  }
}

/** @typedef {(a: number, b: number, c: number, d: number, word: number, by: number, add: number) => number} Step */

/** @type {Step} */
const ff = (a, b, c, d, word, by, add) => (turn((a + ((b & c) | (~b & d)) + word + add) | 0, by) + b) | 0;
/** @type {Step} */
const gg = (a, b, c, d, word, by, add) => (turn((a + ((b & d) | (c & ~d)) + word + add) | 0, by) + b) | 0;
/** @type {Step} */
const hh = (a, b, c, d, word, by, add) => (turn((a + (b ^ c ^ d) + word + add) | 0, by) + b) | 0;
/** @type {Step} */
const ii = (a, b, c, d, word, by, add) => (turn((a + (c ^ (b | ~d)) + word + add) | 0, by) + b) | 0;

/** @param {number} sum @param {number} by @returns {number} 32 bits, turned left */
const turn = (sum, by) => (sum << by) | (sum >>> (32 - by));

/** @param {Int32Array} state @param {Int32Array} words @param {number} at */
function block(state, words, at) {
  let [a, b, c, d] = [state[0], state[1], state[2], state[3]];
  a = ff(a, b, c, d, words[at], 7, -680876936);
  d = ff(d, a, b, c, words[at + 1], 12, -389564586);
  c = ff(c, d, a, b, words[at + 2], 17, 606105819);
  b = ff(b, c, d, a, words[at + 3], 22, -1044525330);
  a = ff(a, b, c, d, words[at + 4], 7, -176418897);
  d = ff(d, a, b, c, words[at + 5], 12, 1200080426);
  c = ff(c, d, a, b, words[at + 6], 17, -1473231341);
  b = ff(b, c, d, a, words[at + 7], 22, -45705983);
  a = ff(a, b, c, d, words[at + 8], 7, 1770035416);
  d = ff(d, a, b, c, words[at + 9], 12, -1958414417);
  c = ff(c, d, a, b, words[at + 10], 17, -42063);
  b = ff(b, c, d, a, words[at + 11], 22, -1990404162);
  a = ff(a, b, c, d, words[at + 12], 7, 1804603682);
  d = ff(d, a, b, c, words[at + 13], 12, -40341101);
  c = ff(c, d, a, b, words[at + 14], 17, -1502002290);
  b = ff(b, c, d, a, words[at + 15], 22, 1236535329);
  a = gg(a, b, c, d, words[at + 1], 5, -165796510);
  d = gg(d, a, b, c, words[at + 6], 9, -1069501632);
  c = gg(c, d, a, b, words[at + 11], 14, 643717713);
  b = gg(b, c, d, a, words[at], 20, -373897302);
  a = gg(a, b, c, d, words[at + 5], 5, -701558691);
  d = gg(d, a, b, c, words[at + 10], 9, 38016083);
  c = gg(c, d, a, b, words[at + 15], 14, -660478335);
  b = gg(b, c, d, a, words[at + 4], 20, -405537848);
  a = gg(a, b, c, d, words[at + 9], 5, 568446438);
  d = gg(d, a, b, c, words[at + 14], 9, -1019803690);
  c = gg(c, d, a, b, words[at + 3], 14, -187363961);
  b = gg(b, c, d, a, words[at + 8], 20, 1163531501);
  a = gg(a, b, c, d, words[at + 13], 5, -1444681467);
  d = gg(d, a, b, c, words[at + 2], 9, -51403784);
  c = gg(c, d, a, b, words[at + 7], 14, 1735328473);
  b = gg(b, c, d, a, words[at + 12], 20, -1926607734);
  a = hh(a, b, c, d, words[at + 5], 4, -378558);
  d = hh(d, a, b, c, words[at + 8], 11, -2022574463);
  c = hh(c, d, a, b, words[at + 11], 16, 1839030562);
  b = hh(b, c, d, a, words[at + 14], 23, -35309556);
  a = hh(a, b, c, d, words[at + 1], 4, -1530992060);
  d = hh(d, a, b, c, words[at + 4], 11, 1272893353);
  c = hh(c, d, a, b, words[at + 7], 16, -155497632);
  b = hh(b, c, d, a, words[at + 10], 23, -1094730640);
  a = hh(a, b, c, d, words[at + 13], 4, 681279174);
  d = hh(d, a, b, c, words[at], 11, -358537222);
  c = hh(c, d, a, b, words[at + 3], 16, -722521979);
  b = hh(b, c, d, a, words[at + 6], 23, 76029189);
  a = hh(a, b, c, d, words[at + 9], 4, -640364487);
  d = hh(d, a, b, c, words[at + 12], 11, -421815835);
  c = hh(c, d, a, b, words[at + 15], 16, 530742520);
  b = hh(b, c, d, a, words[at + 2], 23, -995338651);
  a = ii(a, b, c, d, words[at], 6, -198630844);
  d = ii(d, a, b, c, words[at + 7], 10, 1126891415);
  c = ii(c, d, a, b, words[at + 14], 15, -1416354905);
  b = ii(b, c, d, a, words[at + 5], 21, -57434055);
  a = ii(a, b, c, d, words[at + 12], 6, 1700485571);
  d = ii(d, a, b, c, words[at + 3], 10, -1894986606);
  c = ii(c, d, a, b, words[at + 10], 15, -1051523);
  b = ii(b, c, d, a, words[at + 1], 21, -2054922799);
  a = ii(a, b, c, d, words[at + 8], 6, 1873313359);
  d = ii(d, a, b, c, words[at + 15], 10, -30611744);
  c = ii(c, d, a, b, words[at + 6], 15, -1560198380);
  b = ii(b, c, d, a, words[at + 13], 21, 1309151649);
  a = ii(a, b, c, d, words[at + 4], 6, -145523070);
  d = ii(d, a, b, c, words[at + 11], 10, -1120210379);
  c = ii(c, d, a, b, words[at + 2], 15, 718787259);
  b = ii(b, c, d, a, words[at + 9], 21, -343485551);
  state[0] += a;
  state[1] += b;
  state[2] += c;
  state[3] += d;
}
