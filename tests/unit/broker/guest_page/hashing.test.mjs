// The workers of the page, by fake ones: their script comes from the broker, which may be away.
import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { load } from "./load.mjs";

const workers = [];
globalThis.Worker = class {
  asked = [];
  constructor() {
    workers.push(this);
  }
  postMessage(question) {
    this.asked.push(question);
  }
  terminate() {
    this.hasEnded = true;
  }
};
Object.defineProperty(globalThis, "navigator", { value: { hardwareConcurrency: 2 } });
const { Hashing } = await load("hashing.js");

test("a worker whose script could not be had is replaced, and what it was asked for is tried later", async () => {
  const hashing = new Hashing();
  assert.equal(workers.length, 1, "it starts before it is needed");
  const lost = hashing.checksum({}, "md5");
  workers[0].onerror();
  const failure = await lost.catch((error) => error.failure);
  assert.deepEqual(failure, { where: "broker", status: 0, code: "unreachable" });
  const found = hashing.checksum({}, "md5");
  assert.equal(workers.length, 2);
  workers[1].onmessage({ data: { id: workers[1].asked[0].id, checksum: "md5:00" } });
  assert.equal(await found, "md5:00");
});

test("a file that can't be read fails for itself", async () => {
  const hashing = new Hashing();
  const asked = hashing.checksum({}, "md5");
  const worker = workers.at(-1);
  worker.onmessage({ data: { id: worker.asked[0].id, problem: "NotReadableError" } });
  assert.equal((await asked.catch((error) => error.failure)).code, "unreadable");
});

test("a worker that says nothing for a minute is replaced; one that reads on is not", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const hashing = new Hashing();
  const worker = workers.at(-1);
  const stuck = hashing.checksum({}, "md5");
  mock.timers.tick(59_000);
  worker.onmessage({ data: { id: worker.asked[0].id } });
  mock.timers.tick(59_000);
  assert.ok(!worker.hasEnded);
  mock.timers.tick(1_000);
  assert.ok(worker.hasEnded);
  assert.equal((await stuck.catch((error) => error.failure)).code, "unreachable");

  const found = hashing.checksum({}, "md5");
  const other = workers.at(-1);
  assert.notEqual(other, worker);
  other.onmessage({ data: { id: other.asked[0].id, checksum: "md5:00" } });
  assert.equal(await found, "md5:00");
  mock.timers.tick(600_000);
  assert.ok(!other.hasEnded, "it is asked nothing");
  mock.timers.reset();
});
