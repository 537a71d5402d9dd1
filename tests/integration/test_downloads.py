"""Downloads by a browser or aria2 in a watched folder: one link, once the file is complete."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faulty_s3 import FaultyS3
from tests.running import config, running, watch


@pytest.mark.parametrize("beside", ["report.pdf.part", "report.k3Jd81-x.pdf.part", "report.pdf.crdownload"])
async def test_a_browser_s_placeholder_waits_for_what_is_beside_it(
    faulty_s3: FaultyS3, tmp_path: Path, beside: str
) -> None:
    """It is empty until the other one is renamed over it; with after = "delete" it was deleted under the browser."""
    async with running(config(tmp_path, faulty_s3, watch(tmp_path, after="delete"))) as daemon:
        drop = daemon.folder / "drop"
        (drop / beside).write_bytes(b"half")
        (drop / "report.pdf").touch()
        await daemon.until(lambda: any(s.why.startswith("waits") for s in daemon.view.settling()), "reason")
        (settling,) = daemon.view.settling()
        assert daemon.view.settling_at("drop", b"report.pdf") == settling
        assert (settling.path, settling.why) == (b"report.pdf", f"waits until {beside} beside it is gone")
        (drop / beside).write_bytes(b"whole")
        (drop / beside).replace(drop / "report.pdf")
        (done,) = await daemon.done()
        assert done["size"] == len(b"whole")
        assert daemon.links() == ["report.pdf"]


async def test_what_aria2_fills_waits_until_its_control_file_is_gone(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with running(config(tmp_path, faulty_s3)) as daemon:
        drop = daemon.folder / "drop"
        (drop / "a.iso.aria2").write_bytes(b"control")
        os.utime(drop / "a.iso.aria2", (0, 0))
        daemon.drop("a.iso", b"half")
        await daemon.until(lambda: any(s.why.startswith("waits") for s in daemon.view.settling()), "reason")
        await daemon.rescan()
        assert daemon.links() == []
        daemon.drop("a.iso", b"whole")
        (drop / "a.iso.aria2").unlink()
        (done,) = await daemon.done()
        assert done["size"] == len(b"whole")


async def test_a_download_that_was_given_up_long_ago_holds_no_file_up(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with running(config(tmp_path, faulty_s3)) as daemon:
        (daemon.folder / "drop" / "a.pdf.part").write_bytes(b"half")
        os.utime(daemon.folder / "drop" / "a.pdf.part", (0, 0))
        daemon.drop("a.pdf", b"whole")
        await daemon.done()
        assert daemon.links() == ["a.pdf"]
