// Carries out what plan.js decides: reserves, hashes, signs, sends, and checks that files came in.

import { Failed } from "./failure.js";
import * as plan from "./plan.js";
import { completion, listOf, send, uploadIdOf } from "./s3.js";

const TICK = 1000;
const PACE_EVERY = 5;
/** Files in one call, which share a folder in the bucket; the broker takes no more. */
const MOST_FILES = 1000;
const MOST_RENEWALS = 3;

/** @typedef {import("./plan.js").Upload} Upload */
/** @typedef {import("./plan.js").Job} Job */
/** @typedef {{ file: File, path: string }} Found */
/** @typedef {{ sent: number, samples: import("./plan.js").Sample[] }} Meter */

export class Engine {
  /** @type {Upload[]} */
  uploads = [];
  /** @type {"" | "pin" | "ended" | "gone"} why nothing is sent */
  stopped = "";
  /** @type {import("./broker.js").Checksums} */
  checksums = { put: "md5", parts: "md5" };
  meter = meter();
  /** @type {Map<Upload, Meter>} of those being sent */
  meters = new Map();
  /** @type {Map<Upload, AbortController>} */
  #aborts = new Map();
  /** @type {import("./plan.js").Pace} */
  #pace = { slots: plan.LEAST_SLOTS, rate: 0, step: 1 };
  #running = 0;
  #ticks = 0;
  #reserving = false;
  #reserveAfter = 0;
  #reserveAttempt = 0;

  /** @param {import("./broker.js").Broker} broker @param {import("./hashing.js").Hashing} hashing
   * @param {import("./keep.js").Keep} keep @param {(upload?: Upload) => void} changed */
  constructor(broker, hashing, keep, changed) {
    this.broker = broker;
    this.hashing = hashing;
    this.keep = keep;
    this.changed = changed;
  }

  async start() {
    this.uploads = await this.keep.all();
    setInterval(() => this.#tick(), TICK);
    addEventListener("online", () => this.hurry());
    this.changed();
  }

  // --- what a person does -----------------------------------------------------------------------
  /** @param {Found[]} found @returns {number} how many of them are new, or go on */
  add(found) {
    const taken = new Set(this.uploads.map(({ path }) => path));
    let count = 0;
    for (const { file, path } of found) {
      const known = plan.uploadOf(this.uploads, told({ file, path }));
      if (known && known.state !== "absent" && known.state !== "failed") continue;
      const upload = known ?? fresh(file, path, plan.freePath(path, taken));
      count += 1;
      taken.add(upload.path);
      if (!known) this.uploads.push(upload);
      upload.file = file;
      this.#go(upload, "choose");
    }
    this.#pump();
    return count;
  }

  /** Continue files of before a reload, and no others, as some of a folder may have been cancelled.
   * @param {Found[]} found @param {boolean} byHand a person wants it, so paused ones continue, too */
  addAgain(found, byHand) {
    const due = this.uploads.filter(({ state, wasPaused }) => state === "absent" && (byHand || !wasPaused));
    this.add(found.filter((each) => due.some((upload) => plan.isSame(upload, told(each)))));
  }

  /** @param {Upload} upload */
  pause(upload) {
    this.#move(upload, "pause");
    this.#abort(upload);
  }

  /** @param {Upload} upload */
  resume(upload) {
    this.#go(upload, upload.state === "failed" ? "retry" : "resume");
    this.#pump();
  }

  /** @param {Upload} upload */
  cancel(upload) {
    this.#move(upload, "cancel");
    if (upload.state !== "cancelled") return;
    this.#abort(upload);
    this.uploads.splice(this.uploads.indexOf(upload), 1);
    this.keep.remove(upload);
    if (upload.ticket) this.broker.cancel(upload.ticket).catch(() => {}); // else the ticket ends by itself
    this.changed(upload);
    this.#pump();
  }

  /** Retry at once the requests that wait for a later time. */
  hurry() {
    for (const upload of this.uploads) upload.notBefore = 0;
    this.#reserveAfter = 0;
    this.#pump();
  }

  unlocked() {
    this.stopped = "";
    this.#pump();
  }

  // --- requests ---------------------------------------------------------------------------------
  #pump() {
    if (this.stopped) return;
    this.#reserve();
    plan.choose(this.uploads, this.#pace.slots - this.#running, Date.now(), (upload, job) => {
      this.#running += 1;
      upload.busy.add(plan.nameOf(job));
      this.#run(upload, job);
    });
  }

  async #reserve() {
    const due = this.uploads.filter(({ state, file, ticket }) => state === "waiting" && file && !ticket);
    if (this.#reserving || !due.length || Date.now() < this.#reserveAfter) return;
    this.#reserving = true;
    const batch = due.slice(0, MOST_FILES);
    try {
      const answers = await this.broker.files(batch.map(({ path, size, type }) => ({ path, size, type })));
      batch.forEach((upload, at) => this.#reserved(upload, answers[at]));
      this.#reserveAttempt = 0;
    } catch (error) {
      const verdict = plan.verdict(failureOf(error), ++this.#reserveAttempt, Math.random());
      this.#reserveAfter = Date.now() + (verdict.act === "retry" ? verdict.ms : plan.LONGEST_WAIT);
      if (verdict.act === "pin" || verdict.act === "ended") this.#stop(verdict.act);
      else for (const upload of batch) this.#trouble(upload, failureOf(error).code);
    } finally {
      this.#reserving = false;
    }
    this.#pump();
  }

  /** @param {Upload} upload @param {import("./broker.js").Ticket | import("./broker.js").Refused} answer */
  #reserved(upload, answer) {
    if ("error" in answer) {
      upload.problem = answer.error.code;
      this.#move(upload, "fail");
    } else if (upload.state === "cancelled") {
      this.broker.cancel(answer.ticket).catch(() => {});
    } else {
      const algorithm = this.checksums[answer.part_size ? "parts" : "put"];
      Object.assign(upload, { ticket: answer.ticket, partSize: answer.part_size, algorithm, problem: "" });
      this.#note(upload);
    }
  }

  /** @param {Upload} upload @param {Job} job */
  async #run(upload, job) {
    const abort = this.#abortOf(upload);
    const { ticket } = upload;
    try {
      await this.#do(upload, job, abort.signal);
      Object.assign(upload, { attempt: 0, problem: "" });
    } catch (error) {
      // A request that a person stopped, or of a ticket that was given up, has not failed.
      if (!abort.signal.aborted && ticket === upload.ticket) this.#failed(upload, failureOf(error));
    } finally {
      this.#running -= 1;
      upload.busy.delete(plan.nameOf(job));
      upload.live.delete(plan.nameOf(job));
      if (upload.state !== "cancelled") this.#note(upload);
      this.#pump();
    }
  }

  /** @param {Upload} upload @param {Job} job @param {AbortSignal} signal */
  async #do(upload, job, signal) {
    if (job.kind === "put") {
      upload.checksum = await this.#send(upload, job, 0, upload.size, { operation: "put" }, signal);
      upload.stored = true;
    } else if (job.kind === "create") {
      // A checksum of the whole object: S3 combines the parts' CRCs, but not MD5s.
      const ofWhole = upload.algorithm === "crc64nvme" ? { checksum: upload.algorithm } : {};
      const { text } = await this.#ask(upload, { operation: "multipart.create", ...ofWhole }, null, signal);
      upload.uploadId = uploadIdOf(text);
      if (!upload.uploadId) throw new Failed({ where: "store", status: 500, code: "" });
    } else if (job.kind === "part") {
      await this.#part(upload, job, signal);
    } else if (job.kind === "list") {
      upload.parts = plan.provenParts(upload, await this.#list(upload, signal));
      upload.unsure = false;
    } else if (job.kind === "complete") {
      const body = completion(partsOf(upload));
      await this.#ask(upload, { operation: "multipart.complete", upload_id: upload.uploadId }, body, signal);
      upload.stored = true;
    } else {
      await this.#done(upload);
    }
  }

  /** @param {Upload} upload @param {Job & { kind: "part" }} job @param {AbortSignal} signal */
  async #part(upload, job, signal) {
    const { number } = job;
    const { ticket, uploadId } = upload;
    const [from, to] = plan.rangeOf(upload, number);
    const asked = { operation: "multipart.part", upload_id: uploadId, part_number: number };
    let etag = "";
    const checksum = await this.#send(upload, job, from, to, asked, signal, (answer) => (etag = answer.etag));
    // A store that does not expose the ETag to pages mostly has the usual one, and its list has any other.
    const usual = upload.algorithm === "md5" ? `"${checksum.split(":")[1]}"` : "";
    if (ticket === upload.ticket) upload.parts[number] = { etag: etag || usual, checksum };
  }

  /** @param {Upload} upload @param {AbortSignal} signal */
  async #list(upload, signal) {
    const found = [];
    for (let after = 0; ; ) {
      const asked = { operation: "multipart.list", upload_id: upload.uploadId, ...(after && { part_number: after }) };
      const { parts, next } = listOf((await this.#ask(upload, asked, null, signal)).text);
      found.push(...parts);
      if (next <= after) return found;
      after = next;
    }
  }

  /** @param {Upload} upload */
  async #done(upload) {
    const parts = partsOf(upload).map((part) => part.checksum);
    const { checksum } = await this.broker.done(upload.ticket, parts.length === plan.partCount(upload) ? parts : []);
    Object.assign(upload, { checksum: checksum || upload.checksum, received: new Date().toISOString(), problem: "" });
    this.#move(upload, "receive");
    delete upload.file;
  }

  /** Hash, sign and send bytes of the file; return their checksum.
   * @param {Upload} upload @param {Job} job @param {number} from @param {number} to
   * @param {Omit<import("./broker.js").Asked, "ticket">} asked @param {AbortSignal} signal
   * @param {(answer: import("./s3.js").Answer) => void} [told] */
  async #send(upload, job, from, to, asked, signal, told) {
    const body = /** @type {File} */ (upload.file).slice(from, to);
    const checksum = await this.hashing.checksum(body, upload.algorithm);
    signal.throwIfAborted();
    let before = 0;
    const answer = await this.#ask(upload, { ...asked, checksum }, body, signal, (sent) => {
      this.#count(upload, sent - before);
      before = sent;
      upload.live.set(plan.nameOf(job), Math.min(sent, to - from));
    });
    told?.(answer);
    return checksum;
  }

  /** @param {Upload} upload @param {Omit<import("./broker.js").Asked, "ticket">} asked @param {Blob | string | null} body
   * @param {AbortSignal} signal @param {(sent: number) => void} [progress] */
  async #ask(upload, asked, body, signal, progress) {
    const grant = await this.broker.sign({ ticket: upload.ticket, ...asked });
    return send(grant, body, signal, progress);
  }

  // --- failures ---------------------------------------------------------------------------------
  /** @param {Upload} upload @param {import("./plan.js").Failure} failure */
  #failed(upload, failure) {
    const verdict = plan.verdict(failure, ++upload.attempt, Math.random());
    upload.problem = failure.code || `${failure.where}_${failure.status}`;
    if (verdict.act === "retry") upload.notBefore = Date.now() + verdict.ms;
    else if (verdict.act === "check") this.#check(upload);
    else if (verdict.act === "renew") this.#renew(upload);
    else if (verdict.act === "pin" || verdict.act === "ended") this.#stop(verdict.act);
    else if (verdict.act === "fail") {
      // A file that can't be read has changed or gone: it has to be chosen again.
      if (failure.where === "file") delete upload.file;
      this.#move(upload, "fail");
    }
  }

  /** @param {Upload} upload whose object may be there already */
  #check(upload) {
    if (upload.stored) this.#renew(upload);
    else upload.stored = true;
  }

  /** @param {Upload} upload */
  #renew(upload) {
    this.#abort(upload);
    if (upload.renewed++ >= MOST_RENEWALS) this.#move(upload, "fail");
    if (upload.ticket) this.broker.cancel(upload.ticket).catch(() => {});
    Object.assign(upload, { ticket: "", partSize: 0, uploadId: "", parts: {}, stored: false, unsure: false, checksum: "" });
  }

  /** @param {Upload} upload @param {string} problem that will pass */
  #trouble(upload, problem) {
    upload.problem = problem;
    this.changed(upload);
  }

  /** @param {"pin" | "ended"} why */
  #stop(why) {
    this.stopped = why;
    if (why === "pin") this.broker.lock();
    this.changed();
  }

  // --- states -----------------------------------------------------------------------------------
  /** @param {Upload} upload @param {import("./plan.js").Event} event */
  #go(upload, event) {
    Object.assign(upload, { attempt: 0, notBefore: 0, renewed: 0, problem: "", unsure: !!upload.uploadId });
    this.#move(upload, event);
  }

  /** @param {Upload} upload @param {import("./plan.js").Event} event */
  #move(upload, event) {
    upload.state = plan.after(upload.state, event);
    if (upload.state !== "cancelled") this.#note(upload);
  }

  /** @param {Upload} upload */
  #note(upload) {
    this.keep.put(upload);
    this.changed(upload);
  }

  /** @param {Upload} upload */
  #abortOf(upload) {
    const abort = this.#aborts.get(upload) ?? new AbortController();
    this.#aborts.set(upload, abort);
    return abort;
  }

  /** @param {Upload} upload */
  #abort(upload) {
    this.#aborts.get(upload)?.abort();
    this.#aborts.delete(upload);
  }

  // --- pace -------------------------------------------------------------------------------------
  /** @param {Upload} upload @param {number} bytes */
  #count(upload, bytes) {
    const own = this.meters.get(upload) ?? meter();
    this.meters.set(upload, own);
    own.sent += bytes;
    this.meter.sent += bytes;
  }

  #tick() {
    const at = Date.now();
    for (const each of [this.meter, ...this.meters.values()]) {
      each.samples = plan.withSample(each.samples, { at, bytes: each.sent });
    }
    for (const upload of this.meters.keys()) if (!upload.live.size) this.meters.delete(upload);
    if (++this.#ticks % PACE_EVERY === 0 && this.#running) this.#pace = plan.adapt(this.#pace, plan.rateOf(this.meter.samples));
    this.#pump();
    this.changed();
  }
}

/** @param {Found} found */
const told = ({ file, path }) => ({ path, size: file.size, modified: file.lastModified });

/** @returns {Meter} */
const meter = () => ({ sent: 0, samples: [] });

/** @param {unknown} error @returns {import("./plan.js").Failure} */
function failureOf(error) {
  if (error instanceof Failed) return error.failure;
  console.error(error);
  return { where: "file", status: 0, code: "internal_error" };
}

/** @param {Upload} upload @returns {import("./plan.js").Part[]} in order */
const partsOf = ({ parts }) =>
  Object.keys(parts).map(Number).sort((a, b) => a - b).map((number) => parts[number]);

let count = 0;

/** @param {File} file @param {string} chosen @param {string} path @returns {Upload} */
const fresh = (file, chosen, path) => ({
  id: `${Date.now().toString(36).padStart(9, "0")}-${(count++).toString(36).padStart(5, "0")}-${Math.random().toString(36).slice(2, 8)}`,
  path,
  chosen,
  size: file.size,
  modified: file.lastModified,
  type: file.type,
  state: "absent",
  wasPaused: false,
  problem: "",
  ticket: "",
  partSize: 0,
  algorithm: "md5",
  uploadId: "",
  parts: {},
  stored: false,
  unsure: false,
  checksum: "",
  received: "",
  busy: new Set(),
  live: new Map(),
  attempt: 0,
  notBefore: 0,
  renewed: 0,
});
