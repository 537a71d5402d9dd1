// The worker that hashes: what it answers, and that it keeps no memory of what it read.
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { test } from "node:test";

import { load } from "./load.mjs";

let ask, answered;
globalThis.addEventListener = (_, listener) => (ask = listener);
globalThis.postMessage = (answer) => answered(answer);
await load("hasher.js");

const answerTo = (question) =>
  new Promise((resolve) => {
    answered = (answer) => ("checksum" in answer || "problem" in answer) && resolve(answer);
    ask({ data: question });
  });

test("a slice is hashed in pieces, and the memory of each piece is given back", async () => {
  const bytes = randomBytes(2 ** 24 + 5);
  const read = [];
  const blob = {
    size: bytes.length,
    slice: (from, to) => ({
      async arrayBuffer() {
        assert.ok(read.every((piece) => piece.byteLength === 0), "the pieces before");
        const piece = Uint8Array.from(bytes.subarray(from, to)).buffer;
        read.push(piece);
        return piece;
      },
    }),
  };
  const answer = await answerTo({ id: 7, blob, algorithm: "md5" });
  assert.deepEqual(answer, { id: 7, checksum: `md5:${createHash("md5").update(bytes).digest("hex")}` });
  assert.equal(read.length, 3);
  assert.ok(read.every((piece) => piece.byteLength === 0));
});

test("a file that can't be read is told", async () => {
  const blob = { size: 1, slice: () => ({ arrayBuffer: () => Promise.reject(new Error("NotReadableError")) }) };
  assert.deepEqual(await answerTo({ id: 8, blob, algorithm: "crc64nvme" }), { id: 8, problem: "Error: NotReadableError" });
});
