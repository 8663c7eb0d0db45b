"""Write numbers in 7 significant digits."""

from typing import Any

import numpy as np

DIGITS = 7  # significant digits of a number: the last bits of a matrix product differ with the size of the block
_NEAR_TIE = 1e-6  # a product of up to 10**7 is off by less than 1e-9, so further from a tie it is rounded correctly


def format_numbers(values: np.ndarray[Any, Any]) -> list[bytes]:
    """Return floats as text of 7 significant digits."""
    return (b"%.7g\n" * len(values) % tuple(values.tolist())).split(b"\n")[:-1]


def format_probabilities(values: np.ndarray[Any, Any]) -> list[bytes]:
    """Return the same text as `format_numbers`, in a third of its time, where most numbers are from 0.1 to 1."""
    # Those have seven digits after the point. All others, and those that end with a zero, are formatted at the end.
    scaled = np.where((values >= 0.1) & (values < 1), values, 0) * 10**DIGITS
    rounded = np.rint(scaled)
    texts = np.empty((len(values), DIGITS + 3), dtype=np.uint8)
    texts[:, :2], texts[:, -1] = (ord("0"), ord(".")), ord("\n")
    rest = rounded.astype(np.int32)
    for place in range(DIGITS + 1, 1, -1):
        tens = rest // 10
        texts[:, place] = rest - 10 * tens + ord("0")
        rest = tens
    formatted = texts.tobytes().split(b"\n")[:-1]
    others = np.flatnonzero((rounded % 10 == 0) | (np.abs(np.abs(scaled - rounded) - 0.5) <= _NEAR_TIE))
    for row, text in zip(others.tolist(), format_numbers(values[others]), strict=True):
        formatted[row] = text
    return formatted
