"""An upload in parts that is given up."""

from __future__ import annotations

from typing import Any

import pytest

from presignd.errors import Fault, fault
from presignd.model import State
from presignd.pipeline.upload.multipart import abort
from tests.versions import in_state


class Refusing:
    """A bucket whose store refuses every request for one reason."""

    def __init__(self, code: str) -> None:
        self.code, self.store = code, self

    def request(self, *_: object, **__: object) -> None:
        """Make no request: none is sent."""

    async def send(self, *_: object, **__: object) -> None:
        raise fault(self.code)


async def test_an_upload_that_is_lost_already_counts_as_aborted_and_no_other_refusal_does() -> None:
    version = in_state(State.UPLOADING, upload_id="id", key="key")
    lost: Any = Refusing("upload_lost")
    await abort(lost, version)
    rejected: Any = Refusing("rejected")
    with pytest.raises(Fault, match="rejected"):
        await abort(rejected, version)
