// A laptop sleeps in the middle of an upload: its timers stand still, the clock goes on, and after it wakes the
// connections are dead without an error. Engine and requests are the page's own; the browser and the servers are not.
import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { setImmediate } from "node:timers/promises";

import { load } from "./load.mjs";

const { Engine } = await load("engine.js");

const HOURS = 3_600_000;
const STALLED = 60_000;

// Requests to the store, as the browser makes them; none is answered but by the test.
class Request {
  static all = [];
  upload = {};
  status = 0;
  responseText = "";

  constructor() {
    Request.all.push(this);
  }

  open(_method, url) {
    this.url = url;
  }

  setRequestHeader() {}

  getAllResponseHeaders() {
    return "";
  }

  send() {}

  abort() {
    this.isAborted = true;
    this.onabort();
    this.onloadend();
  }

  progress(loaded) {
    this.upload.onprogress({ loaded });
  }

  answer(status, responseText = "") {
    Object.assign(this, { status, responseText });
    this.onload();
    this.onloadend();
  }
}

let clock = 1_000_000;
Date.now = () => clock;

// The machine is awake: timers run, and what is begun gets its turn.
async function pass(ms) {
  clock += ms;
  mock.timers.tick(ms);
  for (let turn = 0; turn < 5; turn++) await setImmediate();
}

const sleep = (ms) => (clock += ms);

async function page() {
  Request.all = [];
  Object.assign(globalThis, { XMLHttpRequest: Request, addEventListener: () => {} });
  mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  let signed = 0;
  const broker = {
    files: async (files) => files.map((_, at) => ({ ticket: `t${at}`, part_size: 0 })),
    sign: async () => ({ method: "PUT", url: `https://store/${++signed}`, headers: {} }),
    done: async () => ({ checksum: "md5:00" }),
  };
  const keep = { all: async () => [], put: () => {} };
  const engine = new Engine(broker, { checksum: async () => "md5:00" }, keep, () => {});
  await engine.start();
  engine.add([{ file: new File(["0123456789"], "a.bin"), path: "a.bin" }]);
  await pass(0);
  return engine;
}

test("what nobody answers after the wake is given up and sent again, by a signature of then", async (t) => {
  t.after(() => mock.timers.reset());
  const [upload] = (await page()).uploads;
  const [asleep] = Request.all;
  asleep.progress(4);
  sleep(8 * HOURS);
  await pass(STALLED - 1);
  assert.ok(!asleep.isAborted, "a slow network is given its time after the wake");
  await pass(1);
  assert.ok(asleep.isAborted);
  await pass(1000);
  const [, again] = Request.all;
  assert.equal(again.url, "https://store/2");
  assert.equal(upload.state, "waiting");
  again.progress(10);
  again.answer(200);
  await pass(0);
  assert.equal(upload.state, "done");
  assert.equal(Request.all.length, 2);
});

test("an answer that came late, as the signature had expired, is asked again at once", async (t) => {
  t.after(() => mock.timers.reset());
  const [upload] = (await page()).uploads;
  sleep(8 * HOURS);
  Request.all[0].answer(403, "<Error><Code>AccessDenied</Code></Error>");
  await pass(0);
  assert.equal(Request.all.length, 2);
  Request.all[1].answer(200);
  await pass(0);
  assert.equal(upload.state, "done");
});
