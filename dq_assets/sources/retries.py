"""Trying again what may work the second time: throttled, broken off, timed out."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

ATTEMPTS = 5
"""Most attempts at one request."""

FIRST_WAIT = 0.25
"""Seconds before the second attempt; doubled for each further one, so that the five take 2 to 4 s of waiting."""


class TransientError(OSError):
    """A failure that says nothing about the file: the same request may succeed. ESTALE: other bytes than were listed came."""


def with_retries(request: Callable[[], T]) -> T:
    """The answer of `request`, which is asked again after a TransientError, ATTEMPTS times at most.

    Each wait is drawn from the upper half of its range: requests that were throttled together do not come back together.
    """
    for attempt in range(ATTEMPTS - 1):
        try:
            return request()
        except TransientError:
            time.sleep(FIRST_WAIT * 2**attempt * random.uniform(0.5, 1))
    return request()
