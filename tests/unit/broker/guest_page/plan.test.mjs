// What the page decides, without a browser, a clock or a network.
import assert from "node:assert/strict";
import { test } from "node:test";

import { load } from "./load.mjs";

const plan = await load("plan.js");

const MIB = 2 ** 20;
const upload = (given = {}) => ({
  id: "1", path: "a.bin", chosen: "a.bin", size: 40 * MIB, modified: 1, type: "", state: "waiting", problem: "", ticket: "t",
  partSize: 16 * MIB, uploadId: "u", parts: {}, stored: false, unsure: false, checksum: "", received: "", file: {},
  busy: new Set(), live: new Map(), attempt: 0, notBefore: 0, renewed: 0, ...given,
});
const part = { etag: '"e"', checksum: "md5:00" };

// Do every request that `choose` gives, one batch after another, as if each succeeded; return their names in order.
function run(uploads, free) {
  const batches = [];
  for (let round = 0; round < 1000; round++) {
    const batch = [];
    plan.choose(uploads, free, 0, (one, job) => {
      one.busy.add(plan.nameOf(job));
      batch.push([one, job]);
    });
    if (!batch.length) return batches;
    batches.push(batch.map(([one, job]) => `${one.path} ${plan.nameOf(job)}`));
    for (const [one, job] of batch) {
      one.busy.delete(plan.nameOf(job));
      if (job.kind === "put" || job.kind === "complete") one.stored = true;
      if (job.kind === "create") one.uploadId = "u";
      if (job.kind === "list") one.unsure = false;
      if (job.kind === "part") one.parts[job.number] = part;
      if (job.kind === "done") one.state = "done";
    }
  }
  throw new Error("it never ends");
}

test("a small file is one PUT, then the broker is asked", () => {
  assert.deepEqual(run([upload({ size: 3, partSize: 0, uploadId: "" })], 4), [["a.bin put"], ["a.bin done"]]);
});

test("a large file is begun, its parts go side by side, and it is completed after the last of them", () => {
  assert.deepEqual(run([upload({ uploadId: "" })], 4), [
    ["a.bin create"],
    ["a.bin part 1", "a.bin part 2", "a.bin part 3"],
    ["a.bin complete"],
    ["a.bin done"],
  ]);
});

test("files take turns: small ones go beside the parts of a large one", () => {
  const small = (path) => upload({ path, size: 1, partSize: 0 });
  const [first] = run([upload({ path: "big" }), small("a"), small("b")], 4);
  assert.deepEqual(first, ["big part 1", "a put", "b put", "big part 2"]);
});

test("after a reload the store is asked first, and only what it lacks is sent", () => {
  const begun = upload({ unsure: true, parts: { 1: part, 3: part } });
  assert.deepEqual(run([begun], 4), [["a.bin list"], ["a.bin part 2"], ["a.bin complete"], ["a.bin done"]]);
});

test("nothing is sent without a ticket, without the file, before its time, or in a state that waits for a person", () => {
  const idle = [{ ticket: "" }, { file: undefined }, { notBefore: 1 }];
  for (const state of ["paused", "absent", "failed", "done", "cancelled"]) idle.push({ state });
  for (const given of idle) assert.deepEqual(run([upload(given)], 4), [], JSON.stringify(given));
});

test("states follow what a person and the network do; what means nothing changes nothing", () => {
  assert.equal(plan.after("waiting", "pause"), "paused");
  assert.equal(plan.after("paused", "resume"), "waiting");
  assert.equal(plan.after("paused", "fail"), "paused");
  assert.equal(plan.after("failed", "retry"), "waiting");
  assert.equal(plan.after("absent", "choose"), "waiting");
  assert.equal(plan.after("absent", "resume"), "absent");
  for (const event of ["choose", "pause", "resume", "retry", "fail", "lose", "cancel"]) {
    assert.equal(plan.after("done", event), "done");
    assert.equal(plan.after("cancelled", event), "cancelled");
  }
});

test("parts cover a file without a gap, and the last one is what is left", () => {
  for (const size of [16 * MIB + 1, 32 * MIB, 40 * MIB]) {
    const one = { size, partSize: 16 * MIB };
    let end = 0;
    for (let number = 1; number <= plan.partCount(one); number++) {
      const [from, to] = plan.rangeOf(one, number);
      assert.equal(from, end);
      assert.ok(to > from);
      end = to;
    }
    assert.equal(end, size);
  }
});

test("the network, a busy store and a restarted broker are waited for, however often", () => {
  for (const status of [0, 408, 429, 500, 502, 503, 504]) {
    for (const where of ["broker", "store"]) {
      const { act, ms } = plan.verdict({ where, status, code: "" }, 1000, 1);
      assert.deepEqual([act, ms], ["retry", plan.LONGEST_WAIT]);
    }
  }
  assert.equal(plan.verdict({ where: "broker", status: 429, code: "", retryAfter: 60 }, 1, 0).ms, 60_000);
});

test("pauses double up to a limit, with chance in them", () => {
  assert.deepEqual([1, 2, 3].map((attempt) => plan.backoff(attempt, 1)), [500, 1000, 2000]);
  assert.equal(plan.backoff(3, 0), 1000);
  assert.equal(plan.backoff(60, 1), plan.LONGEST_WAIT);
});

test("an expired grant is signed again at once; a refusal that stays is told", () => {
  const expired = { where: "store", status: 403, code: "AccessDenied" };
  assert.equal(plan.verdict(expired, 1, 1).act, "again");
  assert.equal(plan.verdict(expired, 2, 1).act, "retry");
  assert.equal(plan.verdict(expired, 5, 1).act, "fail");
});

test("an answer that was lost is asked for: the object may be there already", () => {
  assert.equal(plan.verdict({ where: "store", status: 412, code: "PreconditionFailed" }, 1, 1).act, "check");
  assert.equal(plan.verdict({ where: "store", status: 404, code: "NoSuchUpload" }, 1, 1).act, "check");
  assert.equal(plan.verdict({ where: "broker", status: 200, code: "ticket_refused" }, 1, 1).act, "check");
});

test("what the broker says decides", () => {
  const says = (code, status = 200) => plan.verdict({ where: "broker", status, code }, 1, 1).act;
  assert.equal(says("not_stored"), "renew");
  assert.equal(says("upload_refused"), "renew");
  assert.equal(says("not_stored", 409), "renew");
  assert.equal(says("unknown_invitation", 404), "ended");
  assert.equal(says("state_unreachable", 503), "retry");
  assert.equal(says("", 404), "retry", "a proxy's, while the broker restarts");
  assert.equal(says("invitation_ended"), "ended");
  assert.equal(says("pin_needed", 401), "pin");
  assert.equal(says("too_large"), "fail");
  assert.equal(plan.verdict({ where: "file", status: 0, code: "unreadable" }, 1, 1).act, "fail");
});

test("a wrong checksum is sent again a few times, then told", () => {
  const wrong = { where: "store", status: 400, code: "BadDigest" };
  assert.equal(plan.verdict(wrong, 1, 1).act, "retry");
  assert.equal(plan.verdict(wrong, 5, 1).act, "fail");
});

test("only a part that is listed as it was noted counts", () => {
  const one = upload({ parts: { 1: part, 2: part, 3: part } });
  const listed = [
    { number: 1, etag: '"e"', size: 16 * MIB },
    { number: 2, etag: '"other"', size: 16 * MIB },
    { number: 3, etag: '"e"', size: 5 },
  ];
  assert.deepEqual(plan.provenParts(one, listed), { 1: part });
});

test("ETags that a store does not expose to pages are asked for before the end", () => {
  const untold = { etag: "", checksum: "crc64nvme:00" };
  const sent = upload({ parts: { 1: untold, 2: part, 3: untold } });
  assert.deepEqual(plan.nextJob(sent), { kind: "list" });
  const sizes = { 1: 16 * MIB, 2: 16 * MIB, 3: 8 * MIB };
  sent.parts = plan.provenParts(sent, [1, 2, 3].map((number) => ({ number, etag: number === 2 ? '"e"' : '"x"', size: sizes[number] })));
  assert.deepEqual(sent.parts, { 1: { ...untold, etag: '"x"' }, 2: part, 3: { ...untold, etag: '"x"' } });
  assert.deepEqual(plan.nextJob(sent), { kind: "complete" });
});

test("a file is known again by its path, size and time", () => {
  const found = { path: "a.bin", size: 40 * MIB, modified: 1 };
  assert.ok(plan.isSame(upload(), found));
  for (const other of [{ path: "b" }, { size: 1 }, { modified: 2 }]) {
    assert.ok(!plan.isSame(upload(), { ...found, ...other }));
  }
});

test("a file of a folder that was chosen alone is the one that waits for it", () => {
  const found = { path: "a.bin", size: 40 * MIB, modified: 1 };
  const inFolder = (given) => upload({ path: "x/y/a.bin", chosen: "x/y/a.bin", state: "absent", ...given });
  const one = inFolder();
  assert.equal(plan.uploadOf([inFolder({ modified: 2 }), one, inFolder()], found), one);
  const own = upload({ state: "done" });
  assert.equal(plan.uploadOf([own, one], found), one, "what is there already needs it no more");
  for (const state of ["waiting", "paused", "done", "failed"]) {
    assert.equal(plan.uploadOf([inFolder({ state })], found), undefined, `${state}: another file may have this name`);
  }
  assert.equal(plan.uploadOf([one], { ...found, path: "y/a.bin" }), one, "a folder below, too");
  assert.equal(plan.uploadOf([one], { ...found, path: "z/a.bin" }), undefined);
});

test("what was chosen with its path is that very file first", () => {
  const found = { path: "a.bin", size: 40 * MIB, modified: 1 };
  const [other, own] = [upload({ chosen: "x/a.bin", state: "absent" }), upload({ state: "failed" })];
  assert.equal(plan.uploadOf([other, own], found), own);
  const sent = upload({ state: "waiting" });
  assert.equal(plan.uploadOf([sent], found), sent);
});

test("a path that is taken gets a number, as the daemon gives it", () => {
  const taken = new Set(["a.txt", "a~2.txt", "b", "x.d/c", ".hidden"]);
  assert.deepEqual(
    ["new.txt", "a.txt", "b", "x.d/c", ".hidden"].map((path) => plan.freePath(path, taken)),
    ["new.txt", "a~3.txt", "b~2", "x.d/c~2", ".hidden~2"],
  );
});

test("progress counts parts that are there and what is under way, and never more than the file", () => {
  assert.equal(plan.sentOf(upload({ parts: { 3: part } })), 8 * MIB);
  assert.equal(plan.sentOf(upload({ parts: { 3: part }, live: new Map([["part 1", 5]]) })), 8 * MIB + 5);
  assert.equal(plan.sentOf(upload({ size: 1, partSize: 0, live: new Map([["put", 900]]) })), 1);
  assert.equal(plan.sentOf(upload({ stored: true })), 40 * MIB);
});

test("the rate is that of the last seconds", () => {
  let samples = [];
  for (let at = 0; at <= 20; at++) samples = plan.withSample(samples, { at: at * 1000, bytes: at * 100 });
  assert.equal(samples.length, 10);
  assert.equal(plan.rateOf(samples), 100);
  assert.equal(plan.rateOf([]), 0);
  assert.equal(plan.secondsLeft(1000, 100), 10);
  assert.equal(plan.secondsLeft(1000, 0), null);
});

test("more requests go side by side while that helps, within the limits", () => {
  let pace = { slots: 3, rate: 100, step: 1 };
  pace = plan.adapt(pace, 130);
  assert.equal(pace.slots, 4);
  pace = plan.adapt(pace, 100);
  assert.equal(pace.slots, 3);
  for (let count = 1; count < 10; count++) pace = plan.adapt(pace, 100 * 2 ** count);
  assert.ok(pace.slots >= plan.LEAST_SLOTS && pace.slots <= plan.MOST_SLOTS);
});
