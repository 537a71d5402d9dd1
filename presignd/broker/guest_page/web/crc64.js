// CRC64NVME, by which S3 checks whole objects. A 64-bit value is two 32-bit halves, because BigInt is far slower; eight
// bytes are taken at once by eight tables ("slicing by 8").

const LOW = 0xac4bc9b5;
const HIGH = 0x9a6c9329;
const TABLES = 8;

const low = new Int32Array(TABLES * 256);
const high = new Int32Array(TABLES * 256);
for (let byte = 0; byte < 256; byte++) {
  let [l, h] = [byte, 0];
  for (let bit = 0; bit < 8; bit++) {
    const odd = l & 1;
    l = (l >>> 1) | (h << 31);
    h >>>= 1;
    if (odd) [l, h] = [l ^ LOW, h ^ HIGH];
  }
  [low[byte], high[byte]] = [l, h];
}
for (let at = 256; at < TABLES * 256; at++) {
  const [l, h] = [low[at - 256], high[at - 256]];
  low[at] = ((l >>> 8) | (h << 24)) ^ low[l & 255];
  high[at] = (h >>> 8) ^ high[l & 255];
}

/** The CRC64NVME of bytes that come in pieces. */
export class Crc64 {
  #low = -1;
  #high = -1;

  /** @param {Uint8Array} bytes */
  update(bytes) {
    let [l, h] = [this.#low, this.#high];
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    const eights = bytes.length - (bytes.length % 8);
    for (let at = 0; at < eights; at += 8) {
      const a = l ^ view.getInt32(at, true);
      const b = h ^ view.getInt32(at + 4, true);
      const [t0, t1, t2, t3] = [1792 + (a & 255), 1536 + ((a >>> 8) & 255), 1280 + ((a >>> 16) & 255), 1024 + (a >>> 24)];
      const [t4, t5, t6, t7] = [768 + (b & 255), 512 + ((b >>> 8) & 255), 256 + ((b >>> 16) & 255), b >>> 24];
      l = low[t0] ^ low[t1] ^ low[t2] ^ low[t3] ^ low[t4] ^ low[t5] ^ low[t6] ^ low[t7];
      h = high[t0] ^ high[t1] ^ high[t2] ^ high[t3] ^ high[t4] ^ high[t5] ^ high[t6] ^ high[t7];
    }
    for (let at = eights; at < bytes.length; at++) {
      const of = (l ^ bytes[at]) & 255;
      l = ((l >>> 8) | (h << 24)) ^ low[of];
      h = (h >>> 8) ^ high[of];
    }
    [this.#low, this.#high] = [l, h];
  }

  /** @returns {string} the checksum in hex */
  digest() {
    const half = (/** @type {number} */ value) => (~value >>> 0).toString(16).padStart(8, "0");
    return half(this.#high) + half(this.#low);
  }
}
