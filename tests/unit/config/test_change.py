"""What a reloaded configuration changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from presignd.config import Config
from presignd.config.change import FIXED, change


def made(*watches: dict[str, Any], **sections: Any) -> Config:
    base: dict[str, Any] = {name: {} for name in ("presign", "upload", "control", "log", "web")}
    state = {"ledger": {"path": "/var/lib/presignd"}, "links": {"file": "/var/lib/presignd/links/links.jsonl"}}
    listed = [{"path": f"/srv/{each['name']}", "bucket": "bucket", **each} for each in watches]
    return Config.model_validate({**base, **state, **sections, "watch": listed})


def test_watches_are_told_apart_by_name() -> None:
    old = made({"name": "stays"}, {"name": "goes"}, {"name": "turns"})
    new = made({"name": "comes"}, {"name": "turns", "after": "delete"}, {"name": "stays"})
    found = change(old, new)
    assert (found.added, found.removed, found.changed) == (("comes",), ("goes",), ("turns",))
    assert [watch.name for watch in found.config.watches] == ["comes", "turns", "stays"]


def test_nothing_new_changes_nothing() -> None:
    found = change(made({"name": "a"}), made({"name": "a"}))
    assert (found.added, found.removed, found.changed, found.restart) == ((), (), (), ())


def test_what_takes_a_restart_stays_and_is_named() -> None:
    old = made({"name": "a"})
    new = made(
        {"name": "a"},
        ledger={"path": "/elsewhere", "keep": "1d"},
        links={"file": "/elsewhere/links.jsonl", "keep": 9},
        control={"group": "staff"},
        web={"listen": "127.0.0.1:1"},
    )
    found = change(old, new)
    assert found.restart == ("ledger.path", "links.file", "links.keep", "control.group", "web.listen")
    assert found.config.ledger.path == Path("/var/lib/presignd")
    assert found.config.ledger.keep == 86400
    assert all(getattr(found.config, name) == getattr(old, name) for name in FIXED)


def test_everything_else_is_taken_from_the_new_one() -> None:
    new = made({"name": "a"}, presign={"get_expires": "1h"}, upload={"concurrency": 3}, log={"level": "debug"})
    found = change(made({"name": "a"}), new)
    assert (found.config, found.restart) == (new, ())
