// The receipt: a text file that lists what came in. Pure.

/** @typedef {{ path: string, size: number, checksum: string, received: string }} Entry */

/** @param {import("./plan.js").Upload[]} uploads @returns {Entry[]} */
export const entries = (uploads) =>
  uploads
    .filter(({ state }) => state === "done")
    .map(({ path, size, checksum, received }) => ({ path, size, checksum, received }));

/** @param {string} note @param {string} host @param {Entry[]} files @returns {string} */
export const asJson = (note, host, files) => `${JSON.stringify({ to: host, note, files }, null, 2)}\n`;

/** One line per file, in columns that stay readable in any editor. Names come last: they may be long.
 * @param {string} title @param {string} note @param {string} host @param {Entry[]} files @returns {string} */
export function asText(title, note, host, files) {
  const width = Math.max(1, ...files.map(({ size }) => String(size).length));
  const lines = files.map(
    ({ path, size, checksum, received }) =>
      `${received}  ${String(size).padStart(width)}  ${checksum || "-"}  ${visible(path)}`,
  );
  return `${[title, host, note, "", ...lines].filter((line, at) => line || at === 3).join("\n")}\n`;
}

/** @param {string} path @returns {string} on one line, whatever it holds */
const visible = (path) => path.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g, "\ufffd");
