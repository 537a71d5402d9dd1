// What the browser keeps of each upload (IndexedDB), so that a reload loses nothing. Without IndexedDB, as in some private
// windows, nothing is kept and everything else works.

const UPLOADS = "uploads";
const HANDLES = "handles";

/** @typedef {import("./plan.js").Upload} Upload */
/** @typedef {import("./pick.js").Handle} Handle */

export class Keep {
  /** @param {IDBDatabase | null} database @param {string} invitation */
  constructor(database, invitation) {
    this.database = database;
    this.invitation = invitation;
  }

  /** @param {string} invitation @returns {Promise<Keep>} */
  static open(invitation) {
    return new Promise((resolve) => {
      const none = () => resolve(new Keep(null, invitation));
      try {
        const request = indexedDB.open("presignd", 2);
        request.onupgradeneeded = ({ oldVersion }) => {
          if (oldVersion < 1) request.result.createObjectStore(UPLOADS, { keyPath: ["invitation", "id"] });
          request.result.createObjectStore(HANDLES, { keyPath: ["invitation", "name"] });
        };
        request.onsuccess = () => resolve(new Keep(request.result, invitation));
        request.onerror = request.onblocked = none;
      } catch {
        none();
      }
    });
  }

  /** @returns {Promise<Upload[]>} in the order in which they were chosen */
  async all() {
    return (await this.#read(UPLOADS)).map(({ invitation: _, ...kept }) => revived(kept));
  }

  /** @returns {Promise<Handle[]>} of what was dropped */
  async handles() {
    return (await this.#read(HANDLES)).map(({ handle }) => handle);
  }

  /** @param {Upload} upload */
  put(upload) {
    const { file: _file, busy: _busy, live: _live, attempt: _attempt, notBefore: _notBefore, ...kept } = upload;
    this.#write(UPLOADS, (store) => store.put({ ...kept, invitation: this.invitation }));
  }

  /** @param {Upload} upload */
  remove(upload) {
    this.#write(UPLOADS, (store) => store.delete([this.invitation, upload.id]));
  }

  /** @param {Handle} handle */
  putHandle(handle) {
    this.#write(HANDLES, (store) => store.put({ invitation: this.invitation, name: handle.name, handle }));
  }

  forgetHandles() {
    this.#write(HANDLES, (store) => store.delete(this.#range()));
  }

  #range() {
    return IDBKeyRange.bound([this.invitation, ""], [this.invitation, "\uffff"]);
  }

  /** @param {string} name @returns {Promise<any[]>} */
  #read(name) {
    return new Promise((resolve) => {
      const request = this.database?.transaction(name).objectStore(name).getAll(this.#range());
      if (!request) return resolve([]);
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => resolve([]);
    });
  }

  /** @param {string} name @param {(store: IDBObjectStore) => void} write */
  #write(name, write) {
    try {
      if (this.database) write(this.database.transaction(name, "readwrite").objectStore(name));
    } catch {
      // The upload continues even if it can't be kept.
    }
  }
}

/** @param {Omit<Upload, "busy" | "live" | "attempt" | "notBefore">} kept @returns {Upload} */
function revived(kept) {
  const state = kept.state === "done" ? "done" : "absent";
  const wasPaused = kept.state === "paused" || (kept.state === "absent" && kept.wasPaused);
  return { ...kept, algorithm: kept.algorithm ?? "md5", state, wasPaused, unsure: !!kept.uploadId, busy: new Set(), live: new Map(), attempt: 0, notBefore: 0 };
}
