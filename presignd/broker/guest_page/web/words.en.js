/** @typedef {typeof words} Words what the page says; another language is another file with the same names */

const words = {
  title: "Send files",
  until: (/** @type {string} */ date) => `You can send files here until ${date}.`,
  limits: {
    size: (/** @type {string} */ size) => `A file has ${size} at most.`,
    files: (/** @type {number} */ count) => (count === 1 ? "1 more file." : `${count} more files.`),
    bytes: (/** @type {string} */ size) => `${size} more in all.`,
  },
  drop: "Drop files or folders here",
  or: "or choose them, or paste a picture",
  files: "Choose files",
  folder: "Choose a folder",
  photo: "Take a photo",
  pinTitle: "A PIN is needed",
  pin: "PIN",
  open: "Open",
  pinWrong: "This PIN is wrong.",
  pinLater: "Too many tries. Try again later.",
  list: "Files",
  pause: "Pause",
  resume: "Resume",
  cancel: "Cancel",
  retry: "Try again",
  again: "Choose again",
  pauseAll: "Pause all",
  resumeAll: "Resume all",
  goOn: "Go on with what was dropped",
  /** @type {(action: string, name: string) => string} */
  of: (action, name) => `${action}: ${name}`,
  /** @type {(sent: string, size: string) => string} */
  sent: (sent, size) => `${sent} of ${size}`,
  rate: (/** @type {string} */ rate) => `${rate}/s`,
  left: (/** @type {string} */ time) => `${time} left`,
  /** @type {(done: number, all: number) => string} */
  count: (done, all) => `${done} of ${all} received`,
  waiting: "Waiting",
  checking: "Checking",
  paused: "Paused",
  absent: "Choose this file again to go on. What was sent is not sent again.",
  done: "Received",
  failed: "Not sent",
  trying: "No connection or no answer. It goes on by itself.",
  ended: "This invitation has ended. It takes no more files.",
  gone: "This address is not known. Ask who sent it to you for another.",
  nothing: "These files are in the list already.",
  unread: (/** @type {number} */ count) => (count === 1 ? "1 file could not be read." : `${count} files could not be read.`),
  all: "All files have been received. You can close this page.",
  receipt: "Receipt",
  saveText: "Save as text",
  saveJson: "Save as JSON",
  still: "Nothing is lost when this page is closed: open the same address in this browser, and choose the same files.",
  /** @type {Record<string, string>} */
  problems: {
    too_large: "It is larger than this invitation takes.",
    no_files_left: "This invitation takes no more files.",
    no_bytes_left: "This invitation has not enough room left for it.",
    key_refused: "A file can't be stored under this name. Rename it and choose it again.",
    unreadable: "The file can't be read any more: it was changed, moved or deleted. Choose it again.",
    BadDigest: "The file changes while it is read. Choose it again when it is complete.",
  },
  /** @type {(code: string) => string} */
  problem: (code) => `Something is wrong at the other end (${code}).`,
};

export default words;
