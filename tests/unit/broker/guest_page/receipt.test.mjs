import assert from "node:assert/strict";
import { test } from "node:test";

import { load } from "./load.mjs";

const { asJson, asText, entries } = await load("receipt.js");

const done = (path, size) => ({
  path, size, checksum: "md5:00", received: "2026-11-28T10:00:00Z", state: "done", ticket: "secret", file: {},
});

test("a receipt lists what came in, and nothing that opens anything", () => {
  const found = entries([done("a/b.txt", 5), { ...done("c", 1), state: "failed" }]);
  assert.deepEqual(found, [{ path: "a/b.txt", size: 5, checksum: "md5:00", received: "2026-11-28T10:00:00Z" }]);
  const document = asJson("Scans", "files.example.org", found);
  assert.deepEqual(JSON.parse(document), { to: "files.example.org", note: "Scans", files: found });
  assert.ok(!document.includes("secret"));
});

test("as text it has one line a file, whatever its name holds", () => {
  const text = asText("Receipt", "", "files.example.org", entries([done("a\nb\u202etxt", 5), done("c", 12345)]));
  assert.deepEqual(text.split("\n"), [
    "Receipt",
    "files.example.org",
    "",
    "2026-11-28T10:00:00Z      5  md5:00  a\ufffdb\ufffdtxt",
    "2026-11-28T10:00:00Z  12345  md5:00  c",
    "",
  ]);
});
