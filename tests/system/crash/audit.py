"""The promises of docs/guarantees.md, seen from outside once everything has settled: files, objects, links, log."""

from __future__ import annotations

import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.stores import Store
from tests.system.crash.events import Log, read_links
from tests.system.crash.tree import Kept, Taken, digest, named

Links = list[dict[str, Any]]
OURS = ".presignd-"
LINK_FILE = "{name}.link.txt"
THREADS = 4


@dataclass(frozen=True, slots=True)
class Watched:
    """One watch: its folder with what was written there, its bucket, where its files go."""

    name: str
    folder: Kept | Taken
    bucket: str
    after: str
    move_to: Path | None = None
    begin: str = ""
    """What its key template begins with."""
    prefix: str = ""
    """What that becomes in keys."""

    @property
    def key(self) -> str:
        """The key's template; one is known only once the file is read."""
        return self.begin + ("{path}/{sha256}" if self.after == "delete" else "{path}")

    @property
    def keeps(self) -> bool:
        """Whether the files stay."""
        return self.after == "keep"


@dataclass(slots=True)
class Objects:
    """What another client finds in the buckets; an object read once is not read again while its ETag is the same.

    One without an ETag is read each time.
    """

    store: Store
    _read: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def of(self, bucket: str, prefix: str) -> dict[str, tuple[str, str]]:
        """Return each key's ETag and content (as ``digest`` names it), keys without ``prefix``; no check key."""
        pages = self.store.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        items = [item for page in pages for item in page.get("Contents", ()) if not _is_check(item["Key"])]
        with ThreadPoolExecutor(THREADS) as pool:
            found = pool.map(lambda item: self._digest(bucket, item["Key"], item["ETag"].strip('"')), items)
        return {
            item["Key"].removeprefix(prefix): (item["ETag"].strip('"'), content)
            for item, content in zip(items, found, strict=True)
        }

    def _digest(self, bucket: str, key: str, etag: str) -> str:
        if not etag or (bucket, key, etag) not in self._read:
            self._read[bucket, key, etag] = digest(self.store.read(bucket, key))
        return self._read[bucket, key, etag]


class Audit:
    """Finds violations, each a line of words."""

    def __init__(
        self,
        watches: Sequence[Watched],
        store: Store,
        log: Log,
        links_file: Path,
        at_signer: Callable[[Links], Iterable[str]],
    ) -> None:
        self._watches, self._log, self._links_file, self._at_signer = watches, log, links_file, at_signer
        self._objects = Objects(store)

    def violations(self) -> list[str]:
        """Look at everything; the daemon runs and is idle, and nothing writes."""
        self._log.read()
        links, torn = read_links(self._links_file)
        found = [f"links: no whole line: {line}" for line in torn]
        found += [*self._log_violations(), *self._link_violations(links), *self._at_signer(links)]
        for watch in self._watches:
            objects = self._objects.of(watch.bucket, watch.prefix)
            there = dict(_files(watch.folder.root))
            look = self._kept if watch.keeps else self._taken
            problems = [*_litter(there), *look(watch, objects), *_linked(watch, objects, links)]
            problems += _link_files(there, links) if watch.keeps else ()
            problems += _litter(dict(_files(watch.move_to))) if watch.move_to else ()
            found += [f"{watch.name}: {problem}" for problem in problems]
        return found

    # --- the log --------------------------------------------------------------------------------
    def _log_violations(self) -> Iterator[str]:
        yield from (f"log: {leak}" for leak in self._log.leaks)
        for file_id in sorted(self._log.seen):
            done = self._log.done.get(file_id, [])
            first = sum(not event.get("replayed") for event in done)
            if not done:
                yield f"log: {file_id} was never done"
            if first > 1:
                yield f"log: {file_id} was done {first} times"
            if len({event["status"] for event in done}) > 1:
                yield f"log: {file_id} ended in two ways: {done}"

    def _link_violations(self, links: Links) -> Iterator[str]:
        lines = Counter(link["file_id"] for link in links)
        yield from (f"links: {file_id} stands {number} times" for file_id, number in lines.items() if number > 1)
        for file_id, done in self._log.done.items():
            linked = done[0]["status"] in ("linked", "adopted")
            if linked and not lines[file_id]:
                yield f"links: {file_id} is {done[0]['status']} and has no line ({done[0].get('key')})"
            if not linked and lines[file_id]:
                yield f"links: {file_id} is {done[0]['status']} and has a line"

    # --- files and objects ----------------------------------------------------------------------
    def _kept(self, watch: Watched, objects: dict[str, tuple[str, str]]) -> Iterator[str]:
        """Each file is there as it was written and is the object of its own name."""
        there = dict(_files(watch.folder.root))
        local = {path: digest(file.read_bytes()) for path, file in there.items() if not _is_extra(path)}
        if local != watch.folder.last:
            differ = {path for path in (*local, *watch.folder.last) if local.get(path) != watch.folder.last.get(path)}
            yield f"local files were touched: {sorted(differ)}"
        for path, content in watch.folder.last.items():
            if path not in objects:
                yield f"{path} is no object"
            elif objects[path][1] != content:
                yield f"{path} is another object than the file"
        numbered = sorted(key for key in objects if "~" in key)
        if numbered:
            yield f"objects took another name, though nobody else writes here: {numbered}"

    def _taken(self, watch: Watched, objects: dict[str, tuple[str, str]]) -> Iterator[str]:
        """Each last content is an object; it is moved where files are moved; none is left."""
        left = sorted(path for path, _ in _files(watch.folder.root) if not _is_extra(path))
        if left:
            yield f"left behind: {left}"
        stored = {content for _, content in objects.values()}
        moved = {digest(file.read_bytes()) for _, file in _files(watch.move_to)} if watch.move_to else None
        for path, content in watch.folder.last.items():
            if content not in stored:
                yield f"the last content of {path} is no object"
            if moved is not None and content not in moved:
                yield f"the last content of {path} was not moved"


def _linked(watch: Watched, objects: dict[str, tuple[str, str]], links: Links) -> Iterator[str]:
    """No link was issued for half a file; each last content has one; all whose object is current fetch just that."""
    mine = [{**link, "key": link["key"].removeprefix(watch.prefix)} for link in links if link["watch"] == watch.name]
    for link in mine:
        if not watch.folder.was_whole(str(Path(link["path"]).relative_to(watch.folder.root)), named(link["checksum"])):
            yield f"the link of {link['key']} is for what was never a whole file there ({link['file_id']})"
    newest = {link["key"]: link for link in mine}
    # What the store calls an object, where it calls it anything; else what is in it.
    current = [
        link
        for key, link in newest.items()
        if {link["etag"] or None, named(link["checksum"])} & {*objects.get(key, ())}
    ]
    linked = {objects[link["key"]][1] for link in current}
    for path, content in watch.folder.last.items():
        if content not in linked:
            yield f"the last content of {path} has no link"
    with ThreadPoolExecutor(THREADS) as pool:
        for link, problem in zip(current, pool.map(_fetch_problem, current), strict=True):
            if problem:
                yield f"the link of {link['key']} {problem}"


def _fetch_problem(link: dict[str, Any]) -> str:
    try:
        with urllib.request.urlopen(link["url"], timeout=60) as answer:
            content = answer.read()
    except OSError as error:
        return f"does not fetch: {error}"
    same = digest(content) == named(link["checksum"]) and len(content) == link["size"]
    return "" if same else "fetches other bytes"


def _link_files(there: dict[str, Path], links: Links) -> Iterator[str]:
    """Beside each file that stays stands a link to its content."""
    urls = {link["url"]: named(link["checksum"]) for link in links}
    for path, file in there.items():
        if _is_extra(path):
            continue
        beside = file.with_name(LINK_FILE.format(name=file.name))
        if not beside.exists():
            yield f"{path} has no link file"
        elif urls.get(beside.read_text().strip()) != digest(file.read_bytes()):
            yield f"{path} has another file's link beside it"


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    return ((str(path.relative_to(root)), path) for path in sorted(root.rglob("*")) if path.is_file())


def _litter(there: dict[str, Path]) -> Iterator[str]:
    for path, file in there.items():
        if file.name.startswith(OURS):
            yield f"{path} was left lying"


def _is_extra(path: str) -> bool:
    return Path(path).name.startswith(OURS) or path.endswith(".link.txt")


def _is_check(key: str) -> bool:
    return key.rpartition("/")[2].startswith(".presignd-check")
