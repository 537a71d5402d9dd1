"""The blocks of the pages of recipes, and a daemon that is configured by one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.stores import Store
from tests.system.harness import Presignd, config_for

ROOT = Path(__file__).parents[1]


def block(page: str, marker: str) -> str:
    """Return the fenced block behind a marker of ``docs/recipes/{page}.md``."""
    text = (ROOT / "docs" / "recipes" / f"{page}.md").read_text("utf-8")
    [found] = re.findall(rf"^<!-- {marker} -->\n```\w*\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)
    return str(found)


def replaced(text: str, by: Mapping[str, object]) -> str:
    """Return ``text`` with what stands for a reader's own names replaced; each of them must be there."""
    for word, value in by.items():
        assert word in text, f"{word} is not in:\n{text}"
        text = text.replace(word, str(value))
    return text


@contextmanager
def daemon_by(
    page: str, folder: Path, store: Store, by: Mapping[str, object], prepare: bool = True
) -> Iterator[Presignd]:
    """Run a daemon with the watch of a page, on a bucket of its own; at the end, search its output for secrets."""
    bucket = store.new_bucket()
    watch = replaced(block(page, f"{page}-watch"), by)
    watch = re.sub(r'^bucket = ".*"$', f'bucket = "{bucket}"', watch, flags=re.MULTILINE)
    general, _, _ = config_for(store, folder, bucket).partition("[[watch]]")
    daemon = Presignd(folder, general + watch, secrets=(store.secret_key,))
    if prepare:
        Path(re.findall(r'^path = "(.*)"$', watch, re.MULTILINE)[0]).mkdir(parents=True, exist_ok=True)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.end()
