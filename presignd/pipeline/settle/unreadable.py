"""What settling can't look at now, in the log: a line for each reason, not for each file, while there are any."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from presignd.errors import FileFault
from presignd.pipeline.announce import shown_path
from presignd.pipeline.files.folder import root_of
from presignd.telemetry.log import get_logger

if TYPE_CHECKING:
    from presignd.config import WatchConfig
    from presignd.errors import Fault


class Hindered:
    """The paths of one watch that wait for a passing fault to end: too many files are open, or the disk fails."""

    def __init__(self, watch: WatchConfig) -> None:
        self._log = get_logger().bind(watch=watch.name)
        self._root = root_of(watch)
        self._paths = defaultdict[str, set[bytes]](set)

    def note(self, path: bytes, fault: Fault | None) -> None:
        """Take down what a look met; say ``settle.retry`` of the first path with a fault that no other waits for."""
        passing = None if isinstance(fault, FileFault) else fault
        for code, paths in self._paths.items():
            if passing is None or code != passing.code:
                paths.discard(path)
        if passing is None:
            return
        waiting = self._paths[passing.code]
        if not waiting:
            told = {"error_code": passing.code, "error": passing.message, "fix": passing.fix}
            self._log.warning("settle.retry", path=shown_path(self._root, path), **told)
        waiting.add(path)
