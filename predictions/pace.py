"""A limit to the rows a second that are read or written."""

import time


class Pace:
    """Keeps to so many rows a second."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._next = 0.0

    def wait(self, rows: int) -> None:
        """Wait until so many more rows may be read or written."""
        if self._rate:
            now = time.monotonic()
            time.sleep(max(0.0, self._next - now))
            self._next = max(self._next, now) + rows / self._rate
