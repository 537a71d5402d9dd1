"""The queues between the stages."""

from __future__ import annotations

from presignd.model import State
from presignd.pipeline.stage import Item, UrgentFirst
from tests.versions import in_state


async def test_what_is_more_urgent_is_sent_before_what_was_claimed_earlier() -> None:
    queue = UrgentFirst()
    for number, priority in enumerate([2, 2, 1, 0, 1]):
        version = in_state(State.UPLOADING, file_id=f"{number}")
        queue.put_nowait(Item(version._replace(priority=priority)))
    assert [queue.get_nowait().version.file_id for _ in range(5)] == ["3", "2", "4", "0", "1"]
    assert queue.empty()
