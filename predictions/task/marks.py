"""Marks: the records as the current release scored them, 64 bits each, for mappers to tell what has not changed since.

A mark is the number of a row key's four digits, in its upper 16 bits, and 48 bits of xxh3_64(row key TAB fingerprint).
A file of marks has one for each of a release's records, ascending, as unsigned little-endian integers of eight bytes:
tasks look into it where it lies on their disk, and share what they have read of it. Its upper bits keep the order of
the row keys, so those of several regions, one after the other, are in order too.

Two records can have one mark: once in some hundred thousand runs in which a million of a hundred million have changed.
Who goes by a mark compares row key and fingerprint in the end (`predictions.task.carry`), and that run has to score
all.
"""

import mmap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xxhash

from predictions.errors import InputError
from predictions.formats.prediction_line import PredictionLine, split_block
from predictions.formats.record_line import SEPARATOR
from predictions.formats.row_key import PREFIX_DIGITS

MARKS_FILE = "marks"
_HASH_BITS = 48
_TYPE = np.dtype("<u8")
_KEY, _RECORD = (PredictionLine._fields.index(name) for name in ("row_key", "record"))


class Marks:
    """A file of marks, to look into.

    Args:
        path: of the file.

    Raises:
        InputError: it cannot be read, or is cut off.
    """

    def __init__(self, path: Path) -> None:
        try:
            size = path.stat().st_size
            # An empty file cannot be mapped into memory.
            self._marks = np.memmap(path, _TYPE, "r") if size else np.empty(0, _TYPE)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: no file of marks: {error}") from error

    def have(self, keys: list[bytes], fingerprints: Iterable[bytes]) -> np.ndarray:
        """Return for each record, by its row key and its fingerprint, whether its mark is there; at least one."""
        wanted = _marks(keys, fingerprints)
        if not len(self._marks):
            return np.zeros(len(wanted), dtype=bool)
        places = np.searchsorted(self._marks, wanted)
        found = np.asarray(self._marks[np.minimum(places, len(self._marks) - 1)] == wanted)
        if isinstance(self._marks.base, mmap.mmap):
            self._marks.base.madvise(mmap.MADV_DONTNEED)  # YARN counts mapped pages as the task's; they stay cached
        return found


def marks_of(blocks: Iterable[bytes]) -> bytes:
    """Return the part of a file of marks for the prediction lines of a range of row keys, given in blocks."""
    found = [np.empty(0, _TYPE)]
    for block in blocks:
        columns = split_block(block)
        found.append(_marks(columns[_KEY], columns[_RECORD]))
    marks = np.concatenate(found)
    del found  # they are as large
    marks.sort()
    return marks.tobytes()


def _marks(keys: list[bytes], fingerprints: Iterable[bytes]) -> np.ndarray:
    prefixes = bytes.fromhex(b"".join([key[:PREFIX_DIGITS] for key in keys]).decode())
    records = map(SEPARATOR.join, zip(keys, fingerprints, strict=True))
    digests = b"".join(map(xxhash.xxh3_64_digest, records))
    upper = np.frombuffer(prefixes, dtype=">u2").astype(_TYPE) << _HASH_BITS
    return upper | (np.frombuffer(digests, dtype=">u8") >> (64 - _HASH_BITS)).astype(_TYPE)
