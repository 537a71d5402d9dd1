/** A request that failed, for `verdict` to judge. */
export class Failed extends Error {
  /** @param {import("./plan.js").Failure} failure @param {string} [message] the server's message */
  constructor(failure, message = "") {
    super(message || failure.code || String(failure.status));
    this.failure = failure;
  }
}

/** @param {string | null} header @returns {number | undefined} seconds */
export const retryAfter = (header) => (header && /^\d+$/.test(header) ? Number(header) : undefined);
