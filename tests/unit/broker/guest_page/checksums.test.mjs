// The checksums of the page, against those of OpenSSL and the published check value.
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { test } from "node:test";

import { load } from "./load.mjs";

const { Md5 } = await load("md5.js");
const { Crc64 } = await load("crc64.js");

const EDGES = [0, 1, 3, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, 1000, 2 ** 20 + 5];

test("MD5 is OpenSSL's, for every length around a block", () => {
  for (const length of EDGES) {
    const bytes = randomBytes(length);
    const sum = new Md5();
    sum.update(bytes);
    assert.equal(sum.digest(), createHash("md5").update(bytes).digest("hex"), `${length} bytes`);
  }
});

test("MD5 and CRC64NVME are the same in whatever pieces the bytes come", () => {
  const bytes = randomBytes(10_000);
  for (const Sum of [Md5, Crc64]) {
    const whole = new Sum();
    whole.update(bytes);
    const expected = whole.digest();
    for (const piece of [1, 7, 63, 64, 65, 1001]) {
      const sum = new Sum();
      for (let at = 0; at < bytes.length; at += piece) sum.update(bytes.subarray(at, at + piece));
      assert.equal(sum.digest(), expected, `${Sum.name} in pieces of ${piece}`);
    }
  }
});

test("MD5 counts more than 2^32 bits", () => {
  const [mine, theirs, piece] = [new Md5(), createHash("md5"), new Uint8Array(2 ** 24)];
  for (let at = 0; at < 33; at++) {
    mine.update(piece);
    theirs.update(piece);
  }
  assert.equal(mine.digest(), theirs.digest("hex"));
});

test("CRC64NVME has its published check value", () => {
  const sum = new Crc64();
  sum.update(new TextEncoder().encode("123456789"));
  assert.equal(sum.digest(), "ae8b14860a799888");
  assert.equal(new Crc64().digest(), "0000000000000000");
});
