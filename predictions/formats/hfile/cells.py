"""The cells in the data blocks of an HFile, and their order.

A cell is: length of its key (4 bytes), of its value (4), of the row key (2), the row key, length of the family (1), the
family, the qualifier, the timestamp (8), the type (1 byte, always a put), the value. The key of a cell is everything
between the first two lengths and the value. Cells are sorted by row key, family, qualifier and timestamp (newest
first).
"""

import struct
from collections.abc import Iterator, Mapping
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from predictions.formats.byte_strings import NONE, ByteStrings

PUT = 4

_LENGTHS = struct.Struct(">iih")
LENGTH_BYTES = 8  # the lengths of key and value, which precede the key
_KEY = struct.Struct(">h")
_TAIL = struct.Struct(">qB")
_KEY_OVERHEAD = 2 + 1 + _TAIL.size  # bytes of a key in addition to row key, family and qualifier
_HEAD = np.dtype([("key", ">i4"), ("value", ">i4"), ("row", ">i2")])  # `_LENGTHS`, of many cells
_TIME_BYTES = 8
_MATRIX_BYTES = 1 << 20  # so that it stays in the processor's cache


class KeyValue(NamedTuple):
    """A cell that was read: row key, family, qualifier, timestamp in milliseconds since 1970, and value."""

    row: bytes
    family: bytes
    qualifier: bytes
    time: int
    value: bytes

    @property
    def rank(self) -> tuple[bytes, bytes, bytes, int]:
        """Return the sort key of the cell."""
        return self.row, self.family, self.qualifier, -self.time


class EncodedRows(NamedTuple):
    """Some rows of data blocks.

    Args:
        data: the rows.
        sizes: the size of each (shape: rows).
        cells: the number of their cells.
        value_bytes: the size of the values.
    """

    data: memoryview
    sizes: np.ndarray
    cells: int
    value_bytes: int


def encode_rows(
    keys: ByteStrings, family: bytes, columns: Mapping[bytes, ByteStrings], times: np.ndarray
) -> Iterator[EncodedRows]:
    """Encode rows for data blocks, some at a time.

    They are first laid out in a matrix, with room for the longest key and values; then the bytes without meaning are
    left out. Where that room would be large, the rows are halved, so that a long value costs few rows their room.

    Args:
        keys: the row keys.
        family: the column family of all cells.
        columns: for each qualifier, the value in each row; missing if the row has no such cell.
        times: for each row, the timestamp of its cells, in milliseconds since 1970.
    """
    ordered = sorted(columns.items(), key=itemgetter(0))
    key_width, *value_widths = (int(strings.sizes.max(initial=0)) for strings in (keys, *dict(ordered).values()))
    tails = [bytes([len(family)]) + family + qualifier + _TAIL.pack(0, PUT) for qualifier, _values in ordered]
    rows, width = len(times), sum(_HEAD.itemsize + key_width + len(tail) for tail in tails) + sum(value_widths)
    if rows > 1 and rows * width > _MATRIX_BYTES:
        for part in (slice(rows // 2), slice(rows // 2, rows)):
            some = {qualifier: values.part(part) for qualifier, values in ordered}
            yield from encode_rows(keys.part(part), family, some, times[part])
        return
    matrix, filled = np.empty((rows, width), np.uint8), np.ones((rows, width), bool)
    key_bytes, key_filled = keys.padded(key_width), _within(keys.sizes, key_width)
    time_bytes = times.astype(">i8").view(np.uint8).reshape(rows, _TIME_BYTES)
    sizes, cells, value_bytes, end = np.zeros(rows, np.int64), 0, 0, 0
    for tail, value_width, (_qualifier, values) in zip(tails, value_widths, ordered, strict=True):
        is_there = values.sizes != NONE
        heads = np.empty(rows, _HEAD)
        heads["key"] = keys.sizes + (_KEY.size + len(tail))
        heads["value"], heads["row"] = values.sizes, keys.sizes
        cell = end
        for piece, within in (
            (heads.view(np.uint8).reshape(rows, _HEAD.itemsize), None),
            (key_bytes, key_filled),
            (np.frombuffer(tail, np.uint8), None),
            (values.padded(value_width), _within(values.sizes, value_width)),
        ):
            start, end = end, end + piece.shape[-1]
            matrix[:, start:end] = piece
            if within is not None:
                filled[:, start:end] = within
        time = end - value_width - _TAIL.size
        matrix[:, time : time + _TIME_BYTES] = time_bytes
        filled[~is_there, cell:end] = False
        sizes += is_there * (_HEAD.itemsize + len(tail) + keys.sizes + values.sizes)
        cells += int(is_there.sum())
        value_bytes += int(values.sizes[is_there].sum())
    yield EncodedRows(matrix[filled].data, sizes, cells, value_bytes)


def _within(sizes: np.ndarray, width: int) -> np.ndarray | None:
    """Return which bytes of a matrix are those of byte strings; None if all are."""
    return None if (sizes == width).all() else np.arange(width) < sizes[:, np.newaxis]


def split_cells(rows: bytes) -> Iterator[bytes]:
    """Split encoded rows into their cells, still encoded."""
    start = 0
    while start < len(rows):
        key, value, _row = _LENGTHS.unpack_from(rows, start)
        stop = start + LENGTH_BYTES + key + value
        yield rows[start:stop]
        start = stop


def first_key(rows: bytes) -> bytes:
    """Return the key of the first cell of encoded rows."""
    key, _value, _row = _LENGTHS.unpack_from(rows)
    return rows[LENGTH_BYTES : LENGTH_BYTES + key]


def last_key(rows: bytes) -> bytes:
    """Return the key of the last cell of encoded rows."""
    *_others, last = split_cells(rows)
    return first_key(last)


def decode_cells(block: bytes) -> Iterator[KeyValue]:
    """Yield the cells of a data block.

    Raises:
        ValueError: the block is not a sequence of puts.
    """
    start = 0
    while start < len(block):
        if len(block) - start < _LENGTHS.size:
            raise ValueError("the last cell of the block is cut off")
        key, value, row = _LENGTHS.unpack_from(block, start)
        stop = start + LENGTH_BYTES + key + value
        if min(value, row) < 0 or key < row + _KEY_OVERHEAD or stop > len(block):
            raise ValueError("the lengths in a cell contradict each other")
        yield KeyValue(*decode_key(block[start + LENGTH_BYTES : stop - value]), block[stop - value : stop])
        start = stop


def decode_key(key: bytes) -> tuple[bytes, bytes, bytes, int]:
    """Split the key of a cell into row key, family, qualifier and timestamp.

    Raises:
        ValueError: this is not the key of a put.
    """
    (row,) = _KEY.unpack_from(key)
    family = 3 + row
    qualifier = family + key[family - 1]
    if len(key) < qualifier + _TAIL.size:
        raise ValueError("the lengths in a cell contradict each other")
    time, kind = _TAIL.unpack_from(key, len(key) - _TAIL.size)
    if kind != PUT:
        raise ValueError(f"a cell has type {kind} and is not a put")
    return key[2 : 2 + row], key[family:qualifier], key[qualifier : -_TAIL.size], time
