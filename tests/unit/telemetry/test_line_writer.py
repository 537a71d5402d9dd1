"""Lines from their own thread: none is torn, none waits for a reader, and dropped lines are counted."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from presignd.telemetry import line_writer
from presignd.telemetry.line_writer import LineWriter

LONG = 30.0
"""Seconds that nothing here takes."""


def notice(count: int, since: datetime) -> str:
    assert since.tzinfo
    return f"dropped {count}"


def line(text: object) -> bytes:
    return f"{text}\n".encode()


class Pipe:
    """A pipe of one page, and a writer to it."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.reader, self.end = os.pipe()
        fcntl.fcntl(self.end, fcntl.F_SETPIPE_SZ, 4096)
        self.writer = LineWriter(lambda: self.end, notice, room)

    def fill(self) -> None:
        """Leave no room in it: what the writer is given then waits."""
        os.set_blocking(self.end, False)
        os.write(self.end, b"x" * 4095 + b"\n")
        os.set_blocking(self.end, True)

    def read(self, count: int) -> list[bytes]:
        """Read until there are ``count`` lines."""
        said = b""
        while said.count(b"\n") < count:
            said += os.read(self.reader, 1 << 16)
        return said.splitlines()


def test_lines_come_in_order_and_whole() -> None:
    pipe = Pipe()
    for number in range(100):
        assert pipe.writer.write(line(number))
    assert pipe.writer.flush(LONG)
    assert pipe.read(100) == [b"%d" % number for number in range(100)]


def test_a_line_longer_than_the_pipe_comes_whole() -> None:
    pipe = Pipe()
    pipe.writer.write(line("y" * 100_000))
    assert pipe.read(1) == [b"y" * 100_000]


def test_a_reader_that_stopped_holds_up_nobody_and_is_told_how_many_lines_it_missed() -> None:
    pipe = Pipe(room=10)
    pipe.fill()
    taken = [pipe.writer.write(line(number)) == 1 for number in range(10)]
    assert taken[-1] is False
    assert not pipe.writer.flush(0)
    assert not pipe.writer.flush(LONG)  # nothing moved since: not waited for again
    told = pipe.read(1 + sum(taken) + 1)[1:]
    assert told == [*(b"%d" % number for number in range(sum(taken))), b"dropped %d" % (10 - sum(taken))]
    assert pipe.writer.flush(LONG)
    assert pipe.writer.write(line("after"))
    assert pipe.read(1) == [b"after"]


def test_of_a_list_the_first_lines_that_fit_are_taken_and_the_rest_is_dropped() -> None:
    pipe = Pipe(room=10)
    pipe.fill()
    pipe.writer.write(line("1"))
    while pipe.writer._bytes:  # the thread has it, and waits for the pipe
        time.sleep(0.001)
    assert pipe.writer.write(line("22"), line("333"), line("4444"), line("5")) == 2
    assert pipe.read(5)[1:] == [b"1", b"22", b"333", b"dropped 2"]


def test_a_line_that_never_fits_is_dropped_and_those_after_it_are_written() -> None:
    pipe = Pipe(room=10)
    pipe.writer.write(line("before"))
    assert pipe.writer.flush(LONG)
    assert not pipe.writer.write(line("longer than the room"))
    assert pipe.read(2) == [b"before", b"dropped 1"]
    assert pipe.writer.flush(LONG)
    assert pipe.writer.write(line("after"))
    assert pipe.read(1) == [b"after"]


def test_a_mark_is_past_once_the_lines_before_it_are_read_and_not_before() -> None:
    pipe = Pipe()
    pipe.fill()
    pipe.writer.write(line("waits"))
    mark = pipe.writer.mark()
    assert not pipe.writer.is_past(mark)
    pipe.read(2)
    assert pipe.writer.flush(LONG)
    assert pipe.writer.is_past(mark)


def test_a_pipe_that_others_made_non_blocking_loses_nothing() -> None:
    pipe = Pipe()
    os.set_blocking(pipe.end, False)
    for number in range(2000):
        pipe.writer.write(line(number))
    assert pipe.read(2000) == [b"%d" % number for number in range(2000)]


def test_whole_lines_share_a_write_that_nobody_gets_into() -> None:
    """Up to PIPE_BUF, a pipe takes a write in one piece: two processes with the same stderr tear no line."""
    pipe = Pipe()
    pipe.fill()
    for number in range(300):
        pipe.writer.write(line(f"{number:>99}"))
    os.read(pipe.reader, 4096)
    pieces: list[bytes] = []
    while sum(piece.count(b"\n") for piece in pieces) < 300:
        pieces.append(os.read(pipe.reader, 4096))
        assert len(pieces[-1]) <= line_writer.CHUNK
        assert pieces[-1].endswith(b"\n")


def test_a_file_gets_the_lines_of_a_burst_in_few_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each write lets the other threads wait for the interpreter, and a file takes any write as a whole."""
    disk, sizes = Disk(monkeypatch, tmp_path / "log"), list[int]()

    def write(descriptor: int, data: memoryview) -> int:
        sizes.append(len(data))
        return disk.write(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    assert disk.writer.write(*[line(f"{number:>99}") for number in range(300)])
    assert disk.writer.flush(LONG)
    assert disk.file.read_bytes() == b"".join([line(f"{number:>99}") for number in range(300)])
    assert sizes == [16_300, 13_700]


class Disk:
    """A descriptor's ``os.write``, of which only so many bytes have room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
        self.room = 1 << 20
        self.error = errno.ENOSPC
        self.file = file
        self.end = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._write: Callable[[int, memoryview], int] = os.write
        monkeypatch.setattr(os, "write", self.write)
        self.writer = LineWriter(lambda: self.end, notice)

    def write(self, descriptor: int, data: memoryview) -> int:
        if descriptor != self.end:
            return self._write(descriptor, data)
        if not self.room:
            raise OSError(self.error, os.strerror(self.error))
        piece = data[: self.room]
        self.room -= len(piece)
        return self._write(descriptor, piece)

    def say(self, *texts: str) -> None:
        """Log one line after the other."""
        for text in texts:
            self.writer.write(line(text))
            assert self.writer.flush(LONG)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Disk:
    return Disk(monkeypatch, tmp_path / "log")


def test_a_full_disk_tears_no_line_and_the_gap_is_told_where_it_is(disk: Disk) -> None:
    disk.room = 8
    disk.say("first", "second", "third", "fourth")
    assert disk.file.read_text() == "first\nse"
    disk.room = 1 << 20
    disk.say("fifth", "sixth")
    assert disk.file.read_text() == "first\nsecond\ndropped 2\nfifth\nsixth\n"


def test_room_that_comes_bit_by_bit_tears_no_line_either(disk: Disk) -> None:
    for room in range(1, 40):
        disk.room = room
        disk.say(f"line {room} and so on")
    disk.room = 1 << 20
    disk.say("last")
    said = disk.file.read_text().splitlines()
    kept = [text for text in said if text.startswith("line")]
    lost = [int(text.removeprefix("dropped ")) for text in said if text.startswith("dropped")]
    assert all(text.endswith("and so on") for text in kept)
    assert said[-1] == "last"
    assert len(kept) + len(lost) + 1 == len(said)
    assert len(kept) + sum(lost) == 39


def test_to_a_reader_that_comes_anew_no_end_of_a_line_is_told(disk: Disk) -> None:
    """A FIFO's first reader went away with half a line."""
    disk.room, disk.error = 8, errno.EPIPE
    disk.say("first", "second", "third")
    disk.file.write_text("")
    disk.room = 1 << 20
    disk.say("fourth")
    assert disk.file.read_text() == "dropped 2\nfourth\n"


def test_where_no_thread_is_to_be_had_whoever_says_a_line_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_self: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", none)
    pipe = Pipe()
    pipe.writer.write(line("alone"))
    assert pipe.read(1) == [b"alone"]


def test_once_closed_a_line_is_written_at_once_or_not_at_all() -> None:
    """At the interpreter's end threads run no more, and nothing may wait."""
    pipe = Pipe()
    pipe.writer.close(LONG)
    assert pipe.writer.write(line("last"))
    pipe.read(1)
    pipe.fill()
    assert not pipe.writer.write(line("too late"))


def test_a_descriptor_that_is_closed_loses_lines_and_no_more() -> None:
    def closed() -> int:
        raise ValueError("I/O operation on closed file")

    writer = LineWriter(closed, notice)
    for _ in range(100):
        writer.write(line("nobody hears"))
    assert writer.flush(LONG)
