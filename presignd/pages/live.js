// Keeps an open page up to date: the server sends each changed section as HTML.
"use strict";

const note = (text) => { document.getElementById("note").textContent = text; };

// The same rule as short_duration in units.py.
const span = (seconds) => {
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= 2 * length) return `${Math.floor(seconds / length)} ${unit}`;
  }
  return `${Math.floor(seconds)} s`;
};

let ahead = 0; // The server's clock less ours, in milliseconds.

const tick = () => {
  for (const time of document.querySelectorAll("time[data-kind]")) {
    const passed = (Date.now() + ahead - Date.parse(time.dateTime)) / 1000;
    const text = span(Math.max(0, time.dataset.kind === "ago" ? passed : -passed));
    if (time.textContent !== text) time.textContent = text;
  }
};

const replace = (section, [version, html]) => {
  if (section.dataset.version === version) return;
  const focused = section.contains(document.activeElement) ? document.activeElement.id : "";
  const opened = [...section.querySelectorAll("details[open]")].map((details) => details.id);
  section.innerHTML = html; // Escaped by the server; the policy runs no script that is in it.
  section.dataset.version = version;
  reveal(section);
  for (const id of opened) document.getElementById(id)?.setAttribute("open", "");
  if (focused) (document.getElementById(focused) || document.body).focus();
};

const show = (event) => {
  const { now, parts } = JSON.parse(event.data);
  ahead = Date.parse(now) - Date.now();
  for (const [name, part] of Object.entries(parts)) {
    const place = document.getElementById(name);
    if (name !== "headline") replace(place, part);
    else if (place.textContent !== part[1]) {
      place.textContent = part[1];
      document.title = `${part[1]} - presignd`;
    }
  }
  document.documentElement.dataset.live = "yes";
  document.getElementById("still").hidden = true;
  tick();
};

const reveal = (root) => {
  for (const button of root.querySelectorAll("[data-copy]")) button.hidden = false;
};

// Over plain HTTP from another machine there is no clipboard API.
const copy = async (text) => {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("refused");
};

const onClick = async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  try {
    await copy(button.dataset.copy);
    note("Link copied.");
  } catch {
    note("The browser refused to copy the link. Copy it from the file name.");
  }
  button.focus();
};

const onSubmit = async (event) => {
  event.preventDefault();
  const form = event.target;
  const answer = await fetch(form.action, {
    method: "POST", headers: { Accept: "text/plain" }, body: new URLSearchParams(new FormData(form)),
  }).catch(() => null);
  note(answer ? await answer.text() : "presignd does not answer.");
};

const follow = () => {
  const source = new EventSource("events");
  let lost = false;
  source.addEventListener("page", show);
  source.onopen = () => { if (lost) note(""); lost = false; };
  source.onerror = () => {
    lost = true;
    note("Not connected. This page may be out of date. Trying again.");
    // A refusal (too many pages are open) ends the source for good.
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, 10000);
  };
};

if (document.getElementById("headline")) {
  document.addEventListener("click", onClick);
  document.addEventListener("submit", onSubmit);
  reveal(document);
  setInterval(tick, 1000);
  follow();
}
