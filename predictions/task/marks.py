"""Marks: 64 bits for each record of the served release, from which mappers see whether a record is unchanged.

A mark has the row key's four digits, as a number, in its upper 16 bits, and below them the upper 48 bits of
xxh3_64(row key TAB fingerprint). A file of marks has one mark for each record of a release, in ascending order, as
unsigned little-endian integers of eight bytes. Tasks search the file on their disk and share the pages that they have
read. The upper bits keep the order of the row keys, so the marks of several regions, one after the other, are in order.

Two records can have the same mark: once in some hundred thousand runs in which a million of a hundred million records
have changed. Therefore the reducer compares row key and fingerprint as well (`predictions.task.carry`); if they differ,
the run fails, and the next one must score every record.
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
    """Search a file of marks.

    Args:
        path: of the file.

    Raises:
        InputError: the file cannot be read, or is cut off.
    """

    def __init__(self, path: Path) -> None:
        try:
            size = path.stat().st_size
            # An empty file cannot be mapped into memory.
            self._marks = np.memmap(path, _TYPE, "r") if size else np.empty(0, _TYPE)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot read the file of marks: {error}") from error

    def have(self, keys: list[bytes], fingerprints: Iterable[bytes]) -> np.ndarray:
        """Return for each record whether the file has its mark.

        Args:
            keys: the records' row keys, at least one.
            fingerprints: the records' fingerprints, in the same order.

        Returns:
            Booleans, one for each record.
        """
        marks = _marks(keys, fingerprints)
        if not len(self._marks):
            return np.zeros(len(marks), dtype=bool)
        positions = np.searchsorted(self._marks, marks)
        has_mark = np.asarray(self._marks[np.minimum(positions, len(self._marks) - 1)] == marks)
        if isinstance(self._marks.base, mmap.mmap):
            # YARN counts mapped pages as the task's memory; dropped, they stay in the page cache.
            self._marks.base.madvise(mmap.MADV_DONTNEED)
        return has_mark


def marks_of(blocks: Iterable[bytes]) -> bytes:
    """Return the bytes of a file of marks for the prediction lines of a range of row keys, given in blocks."""
    block_marks = [np.empty(0, _TYPE)]
    for block in blocks:
        columns = split_block(block)
        block_marks.append(_marks(columns[_KEY], columns[_RECORD]))
    marks = np.concatenate(block_marks)
    del block_marks  # as large as the concatenated marks
    marks.sort()
    return marks.tobytes()


def _marks(keys: list[bytes], fingerprints: Iterable[bytes]) -> np.ndarray:
    prefixes = bytes.fromhex(b"".join([key[:PREFIX_DIGITS] for key in keys]).decode())
    records = map(SEPARATOR.join, zip(keys, fingerprints, strict=True))
    digests = b"".join(map(xxhash.xxh3_64_digest, records))
    upper = np.frombuffer(prefixes, dtype=">u2").astype(_TYPE) << _HASH_BITS
    return upper | (np.frombuffer(digests, dtype=">u8") >> (64 - _HASH_BITS)).astype(_TYPE)
