// Sizes as the page writes them, in its languages.

import assert from "node:assert/strict";
import { test } from "node:test";

import { load } from "./load.mjs";

const { formats } = await load("language.js");

test("a size is a number with its unit, in the singular or the plural", () => {
  const { size } = formats("en-GB");
  assert.deepEqual([0, 1, 4, 999].map(size), ["0 bytes", "1 byte", "4 bytes", "999 bytes"]);
  assert.deepEqual([1000, 27_100_000, 126_000_000].map(size), ["1 kB", "27.1 MB", "126 MB"]);
  assert.equal(formats("de").size(4), "4 Byte");
});
