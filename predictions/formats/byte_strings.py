"""Byte strings in one buffer: a column of a block of lines, without an object for each field."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

NONE = -1  # the size of a byte string that is missing


@dataclass(frozen=True, eq=False)
class ByteStrings:
    """Byte strings in one buffer, some of which may be missing.

    Args:
        data: the buffer (shape: bytes; uint8).
        starts: where each begins (shape: strings; int64).
        sizes: how many bytes each has, `NONE` for one that is missing (shape: strings; int64).
    """

    data: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, values: Sequence[bytes | None]) -> "ByteStrings":
        """Put byte strings into one buffer."""
        sizes = np.array([NONE if value is None else len(value) for value in values], np.int64)
        ends = sizes.clip(0).cumsum()
        return cls(np.frombuffer(b"".join(filter(None, values)), np.uint8), ends - sizes.clip(0), sizes)

    def value(self, index: int) -> bytes | None:
        """Return one of them; None if it is missing."""
        start, size = self.starts[index], self.sizes[index]
        return None if size == NONE else self.data[start : start + size].tobytes()

    @cached_property
    def values(self) -> list[bytes]:
        """All of them; an empty one for one that is missing."""
        data, bounds = self.data.tobytes(), zip(self.starts.tolist(), self.sizes.tolist(), strict=True)
        return [data[start : start + max(size, 0)] for start, size in bounds]

    def part(self, indexes: slice) -> "ByteStrings":
        """Return some of them."""
        return replace(self, starts=self.starts[indexes], sizes=self.sizes[indexes])

    def padded(self, width: int) -> np.ndarray:
        """Return the first `width` bytes from each one's start on (shape: strings, width; uint8).

        What follows a shorter one has no meaning.
        """
        if not width:
            return np.empty((len(self.starts), 0), np.uint8)
        if len(self.starts) == 1:  # often a long one, for whose bytes an index would be eight times as large
            return self.data[np.newaxis, self.starts[0] : self.starts[0] + width]
        return self.data.take(self.starts[:, np.newaxis] + np.arange(width), mode="clip")
