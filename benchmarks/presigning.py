"""Grants signed per second of one core's CPU time: a PUT with four bound headers, compared with minio-py's without any.

``python -m benchmarks.presigning [--rounds 5] [--files 20000]``
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from datetime import timedelta

from minio import Minio

from benchmarks.harness import CLIENT_CORE, print_head, spread
from benchmarks.options import options
from benchmarks.servers import ACCESS_KEY, BUCKET, SECRET_KEY
from presignd.config import PresignConfig
from presignd.presign import GrantRequest, Operation
from presignd.presign.local import LocalPresigner, local_presigner
from presignd.system.clock import utcnow

GOAL = 60_000
BATCH = 100


def main() -> None:
    """Measure, and print."""
    asked = options(__doc__, files=20_000, size=4096, rounds=5)
    os.sched_setaffinity(0, {CLIENT_CORE})
    print_head("Presigning", asked.rounds)
    ours = [asyncio.run(_granted(asked.files)) for _ in range(asked.rounds)]
    theirs = [_timed(_minio(), asked.files) for _ in range(asked.rounds)]
    print("| | a second |\n| --- | --- |")
    print(f"| presignd, PUT with four bound headers (goal ≥ {GOAL}) | {spread(ours, '{:.0f}')} |")
    print(f"| minio-py, PUT without any | {spread(theirs, '{:.0f}')} |\n")


async def _no_answer(*_: object, **__: object) -> None:
    raise AssertionError("the region is given: nothing is asked")


def _presigner() -> LocalPresigner:
    config = PresignConfig(
        endpoint="http://127.0.0.1:9000", region="us-east-1", access_key=ACCESS_KEY, secret_key=SECRET_KEY
    )
    return local_presigner(config, send=_no_answer, clock=utcnow)  # type: ignore[arg-type] # never called


async def _granted(count: int) -> float:
    presigner = _presigner()
    checksum, headers = "md5:" + "ab" * 16, {"x-amz-meta-from": "scanner-1"}
    began = time.process_time()
    for start in range(0, count, BATCH):
        await presigner.grant(
            [
                GrantRequest(
                    Operation.PUT,
                    BUCKET,
                    f"2026/01/01/file-{number:06}.bin",
                    3600,
                    size=4096,
                    content_type="application/octet-stream",
                    checksum=checksum,
                    headers=headers,
                )
                for number in range(start, start + BATCH)
            ]
        )
    return count / (time.process_time() - began)


def _minio() -> Callable[[int], object]:
    client = Minio("127.0.0.1:9000", ACCESS_KEY, SECRET_KEY, secure=False, region="us-east-1")
    return lambda number: client.presigned_put_object(BUCKET, f"2026/01/01/file-{number:06}.bin", timedelta(hours=1))


def _timed(sign: Callable[[int], object], count: int) -> float:
    began = time.process_time()
    for number in range(count // 4):
        sign(number)
    return count // 4 / (time.process_time() - began)


if __name__ == "__main__":
    main()
