"""minio-py's provider of credentials from services, with a bounded client.

Imported when one is asked: that takes a sixth of a daemon's start, and most hosts have their keys at hand.
"""

from __future__ import annotations

from minio.credentials.credentials import Credentials
from minio.credentials.providers import IamAwsProvider
from urllib3 import PoolManager, Retry, Timeout


def retrieve(endpoint: str, region: str) -> Credentials:
    """Ask the service that the environment names; ``endpoint`` and ``region`` are "" where it says nothing of them.

    Blocking. Raises whatever urllib3, json and XML raise, the token in it. A fresh provider each time: it would
    hand out its old answer until ten seconds before the end.
    """
    return IamAwsProvider(
        custom_endpoint=endpoint or None, region=region or None, http_client=_bounded_client()
    ).retrieve()


def _bounded_client() -> PoolManager:
    """Return an HTTP client that gives up within ``credentials.WAIT``: outside EC2 nothing answers at its address."""
    return PoolManager(
        timeout=Timeout(connect=2.0, read=5.0),
        retries=Retry(total=1, redirect=0, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504)),
    )
