"""File ids: UUIDs of version 7, which sort by time."""

from __future__ import annotations

import uuid

from presignd.system.ids import DRAWN, Ids, uuid7

MILLISECOND = 1_000_000


def test_the_example_of_the_rfc() -> None:
    # RFC 9562, appendix A.6: 0x017F22E279B0 ms, rand_a 0xCC3, rand_b 0b01 0x8C4DC0C0C07398F
    nanoseconds = 0x017F22E279B0 * MILLISECOND + -(-0xCC3 * MILLISECOND // 4096)
    assert uuid7(nanoseconds, 0x18C4DC0C0C07398F) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


def test_every_id_is_a_uuid_of_version_7() -> None:
    for random in (0, (1 << 64) - 1, 0x0001020304050607):
        made = uuid.UUID(uuid7(1_795_000_000 * 1000 * MILLISECOND, random))
        assert (made.variant, made.version) == (uuid.RFC_4122, 7)


def test_ids_sort_by_their_time_also_within_a_millisecond() -> None:
    times = [step * 250 for step in range(9_000)]  # nanoseconds; 12 bits tell a millisecond in 244 ns
    made = [uuid7(time, (1 << 64) - 1 if time % 500 else 0) for time in times]
    assert made == sorted(made)


def test_no_random_bytes_are_used_twice_and_few_calls_draw_them() -> None:
    drawn: list[int] = []

    def draw(count: int) -> bytes:
        drawn.append(count)
        start = sum(drawn)
        return b"".join(number.to_bytes(8) for number in range(start, start + count // 8))

    ids = Ids(lambda: 0, draw)
    made = {ids.new() for _ in range(2 * DRAWN)}
    assert (len(made), len(drawn)) == (2 * DRAWN, 2)
