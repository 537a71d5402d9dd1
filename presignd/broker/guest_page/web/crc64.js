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
    const aligned = bytes.byteOffset % 4 ? new Uint8Array(bytes) : bytes;
    // Words of a typed array are little-endian wherever browsers run, as this CRC wants them.
    const words = new Int32Array(aligned.buffer, aligned.byteOffset, 2 * Math.floor(bytes.length / 8));
    // No arrays in this loop: it would take three times as long.
    for (let at = 0; at < words.length; at += 2) {
      const a = l ^ words[at];
      const b = h ^ words[at + 1];
      const t0 = 1792 + (a & 255);
      const t1 = 1536 + ((a >>> 8) & 255);
      const t2 = 1280 + ((a >>> 16) & 255);
      const t3 = 1024 + (a >>> 24);
      const t4 = 768 + (b & 255);
      const t5 = 512 + ((b >>> 8) & 255);
      const t6 = 256 + ((b >>> 16) & 255);
      const t7 = b >>> 24;
      l = low[t0] ^ low[t1] ^ low[t2] ^ low[t3] ^ low[t4] ^ low[t5] ^ low[t6] ^ low[t7];
      h = high[t0] ^ high[t1] ^ high[t2] ^ high[t3] ^ high[t4] ^ high[t5] ^ high[t6] ^ high[t7];
    }
    for (let at = 4 * words.length; at < bytes.length; at++) {
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
