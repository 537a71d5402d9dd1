// Files and folders as people give them: chosen, dropped or pasted. A folder's structure is kept in the paths.

/** @typedef {import("./engine.js").Found} Found */

/** @param {FileList | null} files @returns {Found[]} */
export const fromList = (files) =>
  Array.from(files ?? [], (file) => ({ file, path: file.webkitRelativePath || file.name }));

/** @typedef {FileSystemFileHandle | FileSystemDirectoryHandle} Handle what the browser can open again after a reload */

/** The dropped files, which wait for no handles. Their list only exists while the event is handled, so it is read at once.
 * @param {DataTransfer} data @returns {Promise<{ found: Found[], unread: string[], handles: Promise<Handle[]> }>} */
export async function fromDrop(data) {
  const items = Array.from(data.items).filter(({ kind }) => kind === "file");
  const entries = items.map((item) => item.webkitGetAsEntry());
  const handles = handlesOf(items);
  if (!entries.some(Boolean)) return { found: fromList(data.files), unread: [], handles };
  /** @type {Found[]} */
  const found = [];
  /** @type {string[]} */
  const unread = [];
  for (const entry of entries) if (entry) await walk(entry, found, unread);
  return { found, unread, handles };
}

/** Only Chromium has handles, and refuses them for some folders.
 * @param {DataTransferItem[]} items @returns {Promise<Handle[]>} */
async function handlesOf(items) {
  const asked = items.map((item) => /** @type {any} */ (item).getAsFileSystemHandle?.());
  const answers = await Promise.allSettled(asked);
  return answers.flatMap((each) => (each.status === "fulfilled" && each.value ? [each.value] : []));
}

/** The files below handles that may be read. Files that are gone are left out; Chromium also leaves out names that
 * Windows does not allow.
 * @param {Handle[]} handles @param {boolean} ask ask the person for permission for the others; only a click may do that
 * @returns {Promise<{ found: Found[], isWhole: boolean }>} `isWhole`: all handles may be read */
export async function fromHandles(handles, ask) {
  /** @type {Found[]} */
  const found = [];
  let isWhole = true;
  for (const handle of handles) {
    if (await mayRead(handle, ask)) await follow(handle, handle.name, found);
    else isWhole = false;
  }
  return { found, isWhole };
}

/** @param {any} handle TypeScript does not know its permissions @param {boolean} ask @returns {Promise<boolean>} */
async function mayRead(handle, ask) {
  const mode = { mode: "read" };
  return (await (ask ? handle.requestPermission(mode) : handle.queryPermission(mode))) === "granted";
}

/** @param {Handle} handle @param {string} path @param {Found[]} found */
async function follow(handle, path, found) {
  try {
    if (handle.kind === "file") {
      found.push({ file: await handle.getFile(), path });
      return;
    }
    const children = /** @type {AsyncIterable<Handle>} */ (handle.values());
    for await (const child of children) await follow(child, `${path}/${child.name}`, found);
  } catch {
    // It was moved or removed: its upload waits until it is chosen again.
  }
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
