"""How far a transfer is, told now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS = 10.0
"""Between two words."""


class Progress:
    """Counts bytes.

    Args:
        what: is transferred, for the messages.
        total: bytes in all.
        tell: is given each message.
    """

    def __init__(self, what: str, total: int, tell: Callable[[str], None]) -> None:
        self._what = what
        self._total = total
        self._tell = tell
        self._done = 0
        self._last_word = time.monotonic()

    def add(self, count: int) -> None:
        """So many bytes more are there; negative if some have to be transferred again."""
        self._done += count
        if time.monotonic() - self._last_word >= SECONDS:
            self._last_word = time.monotonic()
            self._tell(f"{self._what}: {self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB")
