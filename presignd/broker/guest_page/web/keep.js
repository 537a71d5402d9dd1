// What the browser keeps of each upload (IndexedDB), so that a reload loses nothing. Without IndexedDB, as in some private
// windows, nothing is kept and all else works.

const STORE = "uploads";

/** @typedef {import("./plan.js").Upload} Upload */

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
        const request = indexedDB.open("presignd", 1);
        request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: ["invitation", "id"] });
        request.onsuccess = () => resolve(new Keep(request.result, invitation));
        request.onerror = request.onblocked = none;
      } catch {
        none();
      }
    });
  }

  /** @returns {Promise<Upload[]>} in the order in which they were chosen */
  all() {
    const range = IDBKeyRange.bound([this.invitation, ""], [this.invitation, "\uffff"]);
    return new Promise((resolve) => {
      const request = this.database?.transaction(STORE).objectStore(STORE).getAll(range);
      if (!request) return resolve([]);
      request.onsuccess = () => resolve(request.result.map(({ invitation: _, ...kept }) => revived(kept)));
      request.onerror = () => resolve([]);
    });
  }

  /** @param {Upload} upload */
  put(upload) {
    const { file: _file, busy: _busy, live: _live, attempt: _attempt, notBefore: _notBefore, ...kept } = upload;
    this.#write((store) => store.put({ ...kept, invitation: this.invitation }));
  }

  /** @param {Upload} upload */
  remove(upload) {
    this.#write((store) => store.delete([this.invitation, upload.id]));
  }

  /** @param {(store: IDBObjectStore) => void} write */
  #write(write) {
    try {
      if (this.database) write(this.database.transaction(STORE, "readwrite").objectStore(STORE));
    } catch {
      // Kept or not, the upload goes on.
    }
  }
}

/** @param {Omit<Upload, "busy" | "live" | "attempt" | "notBefore">} kept @returns {Upload} */
function revived(kept) {
  const state = kept.state === "done" ? "done" : "absent";
  return { ...kept, algorithm: kept.algorithm ?? "md5", state, unsure: !!kept.uploadId, busy: new Set(), live: new Map(), attempt: 0, notBefore: 0 };
}
