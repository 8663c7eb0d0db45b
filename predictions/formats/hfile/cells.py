"""The cells of an HFile's data blocks, and their order.

A cell: length of its key (4 bytes), of its value (4), of the row key (2), the row key, length of the family (1), the
family, the qualifier, the timestamp (8), the type (1: a put), the value. The key is all between the first two lengths
and the value. Cells stand in the order of row key, family, qualifier and timestamp, the newest first.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import NamedTuple, cast

PUT = 4

_LENGTHS = struct.Struct(">iih")
LENGTH_BYTES = 8  # before a key: its length and the value's
_KEY = struct.Struct(">h")
_TAIL = struct.Struct(">qB")
_KEY_OVERHEAD = 2 + 1 + _TAIL.size  # bytes of a key that are not row key, family or qualifier


class KeyValue(NamedTuple):
    """A cell as it was read: row key, family, qualifier, timestamp in milliseconds since 1970, and value."""

    row: bytes
    family: bytes
    qualifier: bytes
    time: int
    value: bytes

    @property
    def rank(self) -> tuple[bytes, bytes, bytes, int]:
        """What cells are ordered by."""
        return self.row, self.family, self.qualifier, -self.time


def encode_rows(
    keys: Sequence[bytes], family: bytes, columns: Mapping[bytes, Sequence[bytes | None]], times: Sequence[int]
) -> tuple[list[bytes], int, int]:
    """Return rows as they stand in a data block, and the number of their cells and of the values' bytes.

    Args:
        keys: the row keys.
        family: of all cells.
        columns: by their qualifiers, of each row its value; None where it has no such cell.
        times: the timestamp of each row's cells, in milliseconds since 1970.
    """
    lengths = list(map(len, keys))
    pieces: list[Iterable[bytes]] = []
    cells = value_bytes = 0
    for qualifier in sorted(columns):
        tails = _tails(bytes([len(family)]) + family + qualifier, times)
        values = columns[qualifier]
        absent = values.count(None)
        filled = [value or b"" for value in values] if absent else cast("Sequence[bytes]", values)
        sizes = list(map(len, filled))
        heads = _heads(_KEY_OVERHEAD + len(family) + len(qualifier), lengths, sizes)
        if not absent:
            pieces += [heads, keys, tails, filled]
        elif absent < len(keys):
            rows = zip(values, zip(heads, keys, tails, filled, strict=False), strict=True)
            pieces.append([b"" if value is None else b"".join(row) for value, row in rows])
        cells += len(keys) - absent
        value_bytes += sum(sizes)
    if not pieces:
        return [b""] * len(keys), 0, 0
    return list(map(b"".join, zip(*pieces, strict=False))), cells, value_bytes


def _heads(rest: int, lengths: Sequence[int], sizes: Sequence[int]) -> Iterator[bytes]:
    """Return what stands before the row key, for each row, from the lengths of key and value: few differ."""
    if len(set(sizes)) == 1:
        known = {row: _LENGTHS.pack(rest + row, sizes[0], row) for row in set(lengths)}
        return map(known.__getitem__, lengths)
    both = list(zip(lengths, sizes, strict=True))
    heads = {(row, value): _LENGTHS.pack(rest + row, value, row) for row, value in set(both)}
    return map(heads.__getitem__, both)


def _tails(name: bytes, times: Sequence[int]) -> Iterator[bytes]:
    """Return what stands between row key and value, for each row; mostly they are all alike."""
    known = {time: name + _TAIL.pack(time, PUT) for time in set(times)}
    return repeat(known[times[0]]) if len(known) == 1 else map(known.__getitem__, times)


def split_cells(rows: bytes) -> Iterator[bytes]:
    """Yield the cells of encoded rows, still encoded."""
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
        ValueError: it is not cells, one after another, each a put.
    """
    start = 0
    while start < len(block):
        if len(block) - start < _LENGTHS.size:
            raise ValueError("its last cell is cut off")
        key, value, row = _LENGTHS.unpack_from(block, start)
        stop = start + LENGTH_BYTES + key + value
        if min(value, row) < 0 or key < row + _KEY_OVERHEAD or stop > len(block):
            raise ValueError("a cell's lengths do not fit together")
        yield KeyValue(*decode_key(block[start + LENGTH_BYTES : stop - value]), block[stop - value : stop])
        start = stop


def decode_key(key: bytes) -> tuple[bytes, bytes, bytes, int]:
    """Return row key, family, qualifier and timestamp of a cell's key.

    Raises:
        ValueError: it is none, or not a put's.
    """
    (row,) = _KEY.unpack_from(key)
    family = 3 + row
    qualifier = family + key[family - 1]
    if len(key) < qualifier + _TAIL.size:
        raise ValueError("a cell's lengths do not fit together")
    time, kind = _TAIL.unpack_from(key, len(key) - _TAIL.size)
    if kind != PUT:
        raise ValueError(f"a cell of type {kind}, not a put")
    return key[2 : 2 + row], key[family:qualifier], key[qualifier : -_TAIL.size], time
