"""The cells in the data blocks of an HFile, and their order.

A cell is: length of its key (4 bytes), of its value (4), of the row key (2), the row key, length of the family (1), the
family, the qualifier, the timestamp (8), the type (1 byte, always a put), the value. The key of a cell is everything
between the first two lengths and the value. Cells are sorted by row key, family, qualifier and timestamp (newest
first).
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import NamedTuple, cast

PUT = 4

_LENGTHS = struct.Struct(">iih")
LENGTH_BYTES = 8  # the lengths of key and value, which precede the key
_KEY = struct.Struct(">h")
_TAIL = struct.Struct(">qB")
_KEY_OVERHEAD = 2 + 1 + _TAIL.size  # bytes of a key in addition to row key, family and qualifier


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


def encode_rows(
    keys: Sequence[bytes], family: bytes, columns: Mapping[bytes, Sequence[bytes | None]], times: Sequence[int]
) -> tuple[list[bytes], int, int]:
    """Encode rows for a data block.

    Args:
        keys: the row keys.
        family: the column family of all cells.
        columns: for each qualifier, the value in each row; None if the row has no such cell.
        times: for each row, the timestamp of its cells, in milliseconds since 1970.

    Returns:
        The encoded rows; the number of their cells; the size of the values in bytes.
    """
    key_sizes = list(map(len, keys))
    pieces: list[Iterable[bytes]] = []
    cells = value_bytes = 0
    for qualifier in sorted(columns):
        tails = _tails(bytes([len(family)]) + family + qualifier, times)
        values = columns[qualifier]
        absent = values.count(None)
        filled = [value or b"" for value in values] if absent else cast("Sequence[bytes]", values)
        value_sizes = list(map(len, filled))
        heads = _heads(_KEY_OVERHEAD + len(family) + len(qualifier), key_sizes, value_sizes)
        if not absent:
            pieces += [heads, keys, tails, filled]
        elif absent < len(keys):
            rows = zip(values, zip(heads, keys, tails, filled, strict=False), strict=True)
            pieces.append([b"" if value is None else b"".join(row) for value, row in rows])
        cells += len(keys) - absent
        value_bytes += sum(value_sizes)
    if not pieces:
        return [b""] * len(keys), 0, 0
    return list(map(b"".join, zip(*pieces, strict=False))), cells, value_bytes


def _heads(overhead: int, key_sizes: Sequence[int], value_sizes: Sequence[int]) -> Iterator[bytes]:
    """Return the bytes before the row key, for each row. Few lengths differ, so each head is packed only once."""
    if len(set(value_sizes)) == 1:
        by_key_size = {size: _LENGTHS.pack(overhead + size, value_sizes[0], size) for size in set(key_sizes)}
        return map(by_key_size.__getitem__, key_sizes)
    sizes = list(zip(key_sizes, value_sizes, strict=True))
    by_sizes = {(key, value): _LENGTHS.pack(overhead + key, value, key) for key, value in set(sizes)}
    return map(by_sizes.__getitem__, sizes)


def _tails(column: bytes, times: Sequence[int]) -> Iterator[bytes]:
    """Return the bytes between row key and value, for each row. Mostly all times are the same."""
    by_time = {time: column + _TAIL.pack(time, PUT) for time in set(times)}
    return repeat(by_time[times[0]]) if len(by_time) == 1 else map(by_time.__getitem__, times)


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
