// What the page decides: which request of which file is next, what a failure means, how long to wait. Pure.

/**
 * A file and where its upload stands. All of it but `file`, `busy`, `live`, `attempt`, `notBefore` and `renewed` is kept
 * in the browser, so that a reload loses nothing.
 * @typedef {object} Upload
 * @property {string} id
 * @property {string} path with its folders, as it is stored
 * @property {string} chosen the path as it was chosen
 * @property {number} size bytes
 * @property {number} modified the file's time, in ms
 * @property {string} type
 * @property {State} state
 * @property {boolean} wasPaused before a reload: then it continues only when a person wants it
 * @property {string} problem the code of the last failure, or ""
 * @property {string} ticket "" before the broker gave one
 * @property {number} partSize 0 for one PUT
 * @property {import("./hasher.js").Algorithm} algorithm of the checksums of its bodies
 * @property {string} uploadId
 * @property {Record<number, Part>} parts those the store has
 * @property {boolean} stored the store has said that it has the whole file, or may have it
 * @property {boolean} unsure the store must be asked for the list of its parts
 * @property {string} checksum
 * @property {string} received when, as RFC 3339, or ""
 * @property {File} [file]
 * @property {Set<string>} busy requests under way, by `nameOf`
 * @property {Map<string, number>} live bytes sent of those
 * @property {number} attempt failures since the last success
 * @property {number} notBefore when to try again, in ms
 * @property {number} renewed how often it began again with a new ticket
 */
/** @typedef {{ etag: string, checksum: string }} Part */
/** @typedef {"waiting" | "paused" | "absent" | "failed" | "done" | "cancelled"} State */
/** @typedef {"choose" | "pause" | "resume" | "retry" | "fail" | "lose" | "receive" | "cancel"} Event */
/** @typedef {{ kind: "put" | "create" | "list" | "complete" | "done" } | { kind: "part", number: number }} Job */
/** @typedef {{ where: "broker" | "store" | "file", status: number, code: string, retryAfter?: number }} Failure */
/** @typedef {{ act: "retry", ms: number } | { act: "check" | "renew" | "pin" | "ended" | "again" | "fail" }} Verdict */

export const LEAST_SLOTS = 3;
export const MOST_SLOTS = 6;
export const LONGEST_WAIT = 30_000;
const FIRST_WAIT = 500;
const TRIES = 5;
const RATE_WINDOW = 10_000;

/** @type {Record<State, Partial<Record<Event, State>>>} */
const TRANSITIONS = {
  waiting: { pause: "paused", fail: "failed", lose: "absent", receive: "done", cancel: "cancelled" },
  paused: { resume: "waiting", receive: "done", lose: "absent", cancel: "cancelled" },
  absent: { choose: "waiting", cancel: "cancelled" },
  failed: { retry: "waiting", choose: "waiting", cancel: "cancelled" },
  done: {},
  cancelled: {},
};

/** The state after an event; an event that the state does not have changes nothing.
 * @param {State} state @param {Event} event @returns {State} */
export const after = (state, event) => TRANSITIONS[state][event] ?? state;

/** @param {{ size: number, partSize: number }} upload @returns {number} 0 for one PUT */
export const partCount = ({ size, partSize }) => (partSize ? Math.ceil(size / partSize) : 0);

/** @param {{ size: number, partSize: number }} upload @param {number} number from 1 @returns {[number, number]} */
export const rangeOf = ({ size, partSize }, number) => [(number - 1) * partSize, Math.min(size, number * partSize)];

/** @param {Job} job @returns {string} */
export const nameOf = (job) => (job.kind === "part" ? `part ${job.number}` : job.kind);

/** The next request of one file: null where it has none, or all it can do is under way. A part is chosen only if none
 * else is under way that decides about parts.
 * @param {Upload} upload @returns {Job | null} */
export function nextJob(upload) {
  const job = dueJob(upload);
  return job && !upload.busy.has(nameOf(job)) ? job : null;
}

/** @param {Upload} upload @returns {Job | null} */
function dueJob(upload) {
  if (upload.state !== "waiting" || !upload.file || !upload.ticket) return null;
  if (upload.stored) return { kind: "done" };
  if (!upload.partSize) return { kind: "put" };
  if (!upload.uploadId) return { kind: "create" };
  if (upload.unsure) return { kind: "list" };
  const count = partCount(upload);
  for (let number = 1; number <= count; number++) {
    if (!upload.parts[number] && !upload.busy.has(nameOf({ kind: "part", number }))) return { kind: "part", number };
  }
  if (upload.busy.size) return null;
  // A store that does not expose ETags to pages has them in its list.
  return Object.values(upload.parts).every(({ etag }) => etag) ? { kind: "complete" } : { kind: "list" };
}

/** What to begin now: one request of each file in turn, so that small files are sent beside a large one. `taken` is
 * called with each choice at once, so that the next one differs.
 * @param {Upload[]} uploads @param {number} free @param {number} now
 * @param {(upload: Upload, job: Job) => void} taken */
export function choose(uploads, free, now, taken) {
  let able = uploads.filter((upload) => upload.notBefore <= now && nextJob(upload));
  while (free > 0 && able.length) {
    for (const upload of able) {
      const job = nextJob(upload);
      if (job && free-- > 0) taken(upload, job);
    }
    able = able.filter(nextJob);
  }
}

/** @param {number} attempt from 1 @param {number} random 0 to 1 @returns {number} ms */
export const backoff = (attempt, random) => Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) * (0.5 + random / 2);

/** What a failure means.
 *
 * `retry`: send the same later. `again`: send it at once, with a new signature. `check`: ask the broker whether the file
 * is there. `renew`: begin again with a new ticket. `pin`: ask for the PIN. `ended`: the invitation takes nothing more.
 * `fail`: a person has to do something.
 * @param {Failure} failure @param {number} attempt from 1 @param {number} random 0 to 1 @returns {Verdict} */
export function verdict(failure, attempt, random) {
  const wait = Math.max(backoff(attempt, random), (failure.retryAfter ?? 0) * 1000);
  /** @type {Verdict} */
  const retry = { act: "retry", ms: wait };
  if (failure.where === "file") return { act: "fail" };
  const said = failure.where === "broker" && brokerSays(failure);
  if (said) return said;
  if (isPassing(failure) || (failure.where === "broker" && !failure.code)) return retry;
  if (failure.where === "broker") return { act: "fail" };
  if (failure.status === 412 || failure.status === 404) return { act: "check" };
  if (attempt >= TRIES) return { act: "fail" };
  if (failure.status === 403) return attempt === 1 ? { act: "again" } : retry;
  return failure.code === "BadDigest" || failure.status === 400 ? retry : { act: "fail" };
}

/** @param {Failure} failure @returns {boolean} whether it has nothing to do with the file */
const isPassing = ({ status, code }) =>
  status === 0 || status === 408 || status === 409 || status === 425 || status === 429 || status >= 500 || code === "SlowDown";

/** @param {Failure} failure @returns {Verdict | null} null if only the status decides; an answer without a code is a
 * proxy's, not the broker's */
function brokerSays({ status, code }) {
  if (!code) return null;
  if (code === "not_stored" || code === "bad_digest" || code === "upload_refused") return { act: "renew" };
  if (code === "ticket_refused") return { act: "check" };
  if (code === "invitation_ended" || status === 404 || status === 410) return { act: "ended" };
  if (status === 401 || code.startsWith("pin")) return { act: "pin" };
  return null;
}

/** @param {Upload} upload @returns {number} bytes that were sent, those under way included */
export function sentOf(upload) {
  if (upload.stored || upload.state === "done") return upload.size;
  let sent = 0;
  for (const number of Object.keys(upload.parts)) {
    const [from, to] = rangeOf(upload, Number(number));
    sent += to - from;
  }
  for (const bytes of upload.live.values()) sent += bytes;
  return Math.min(sent, upload.size);
}

/** Whether a file that was chosen is the one whose upload began before a reload.
 * @param {Upload} upload @param {{ path: string, size: number, modified: number }} found @returns {boolean} */
export const isSame = (upload, found) =>
  upload.chosen === found.path && upload.size === found.size && upload.modified === found.modified;

/** The upload of a file that was chosen: one that waits for it, else any. A file of a folder may be chosen alone: then
 * its path lacks the folder's.
 * @param {Upload[]} uploads @param {{ path: string, size: number, modified: number }} found @returns {Upload | undefined} */
export function uploadOf(uploads, found) {
  const { path, size, modified } = found;
  const isPartOf = (/** @type {Upload} */ upload) =>
    upload.size === size && upload.modified === modified && upload.chosen.endsWith(`/${path}`);
  return (
    uploads.find((upload) => (upload.state === "absent" || upload.state === "failed") && isSame(upload, found)) ??
    uploads.find((upload) => upload.state === "absent" && isPartOf(upload)) ??
    uploads.find((upload) => isSame(upload, found))
  );
}

/** A path that no other file of the list has: cameras and clipboards give each picture the same name.
 * @param {string} path @param {Set<string>} taken @returns {string} name~2.ext, as the daemon names them */
export function freePath(path, taken) {
  const dot = path.lastIndexOf(".");
  const at = dot > path.lastIndexOf("/") + 1 ? dot : path.length;
  let [free, number] = [path, 1];
  while (taken.has(free)) free = `${path.slice(0, at)}~${++number}${path.slice(at)}`;
  return free;
}

/** Which parts a store's list proves: those whose size and ETag are as noted. An ETag that was not exposed is noted.
 * @param {Upload} upload @param {{ number: number, etag: string, size: number }[]} listed
 * @returns {Record<number, Part>} */
export function provenParts(upload, listed) {
  /** @type {Record<number, Part>} */
  const proven = {};
  for (const { number, etag, size } of listed) {
    const [from, to] = rangeOf(upload, number);
    const part = upload.parts[number];
    if (part && (part.etag || etag) === etag && size === to - from) proven[number] = { ...part, etag };
  }
  return proven;
}

/** @typedef {{ at: number, bytes: number }} Sample */

/** @param {Sample[]} samples @param {Sample} sample @returns {Sample[]} those of the last seconds */
export const withSample = (samples, sample) => [...samples.filter(({ at }) => at > sample.at - RATE_WINDOW), sample];

/** @param {Sample[]} samples @returns {number} bytes a second */
export function rateOf(samples) {
  const [first, last] = [samples[0], samples[samples.length - 1]];
  return first && last.at > first.at ? Math.max(0, ((last.bytes - first.bytes) * 1000) / (last.at - first.at)) : 0;
}

/** @param {number} left bytes @param {number} rate @returns {number | null} seconds, null if it is unknown */
export const secondsLeft = (left, rate) => (rate > 0 ? Math.ceil(left / rate) : null);

/** @typedef {{ slots: number, rate: number, step: 1 | -1 }} Pace */

/** How many requests are sent at a time: one more for as long as that makes it faster, one fewer when it doesn't.
 * @param {Pace} pace @param {number} rate @returns {Pace} */
export function adapt(pace, rate) {
  const step = rate >= pace.rate * (pace.step > 0 ? 1.05 : 0.95) ? pace.step : /** @type {1 | -1} */ (-pace.step);
  return { slots: Math.min(MOST_SLOTS, Math.max(LEAST_SLOTS, pace.slots + step)), rate, step };
}
