// Files and folders as people give them: chosen, dropped or pasted. A folder's structure is kept in the paths.

/** @typedef {import("./engine.js").Found} Found */

/** @param {FileList | null} files @returns {Found[]} */
export const fromList = (files) =>
  Array.from(files ?? [], (file) => ({ file, path: file.webkitRelativePath || file.name }));

/** What was dropped. The list of it is only there while the event is handled, so it is read at once.
 * @param {DataTransfer} data @returns {Promise<{ found: Found[], unread: string[] }>} */
export async function fromDrop(data) {
  const items = Array.from(data.items).filter(({ kind }) => kind === "file");
  const entries = items.map((item) => item.webkitGetAsEntry());
  if (!entries.some(Boolean)) return { found: fromList(data.files), unread: [] };
  /** @type {Found[]} */
  const found = [];
  /** @type {string[]} */
  const unread = [];
  for (const entry of entries) if (entry) await walk(entry, found, unread);
  return { found, unread };
}

/** @param {FileSystemEntry} entry @param {Found[]} found @param {string[]} unread */
async function walk(entry, found, unread) {
  const path = entry.fullPath.replace(/^\/+/, "");
  try {
    if (entry.isFile) found.push({ file: await fileOf(/** @type {FileSystemFileEntry} */ (entry)), path });
    else for (const child of await childrenOf(/** @type {FileSystemDirectoryEntry} */ (entry))) await walk(child, found, unread);
  } catch {
    unread.push(path);
  }
}

/** @param {FileSystemFileEntry} entry @returns {Promise<File>} */
const fileOf = (entry) => new Promise((resolve, reject) => entry.file(resolve, reject));

/** A reader gives a folder's entries a hundred at a time, and none at the end.
 * @param {FileSystemDirectoryEntry} folder @returns {Promise<FileSystemEntry[]>} */
async function childrenOf(folder) {
  const reader = folder.createReader();
  const children = [];
  for (;;) {
    /** @type {FileSystemEntry[]} */
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return children;
    children.push(...some);
  }
}
