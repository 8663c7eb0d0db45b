"""The index of an HFile: for each data block where it is, its size in the file and its first key.

A root index block holds entries one after another: offset (8 bytes), size (4), the key's length as Hadoop's
WritableUtils.writeVInt writes it, the key. A leaf or inner one begins with the number of its entries (4) and, for a
search, where each begins and the last one ends (4 each); its entries are offset (8), size (4), key.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

_PLACE = struct.Struct(">qi")
_MIDDLE = struct.Struct(">qii")
_COUNT = struct.Struct(">i")


class Entry(NamedTuple):
    """Where a block is, its size in the file and its first key."""

    offset: int
    size: int
    key: bytes


def encode_root(entries: Iterable[Entry]) -> bytes:
    """Return the data of a root index block."""
    return b"".join(_PLACE.pack(*entry[:2]) + _encode_int(len(entry.key)) + entry.key for entry in entries)


def decode_root(data: bytes, count: int) -> list[Entry]:
    """Read so many entries of a root index block; behind them, HBase finds the middle key."""
    entries, start = [], 0
    for _ in range(count):
        length, key = _decode_int(data, start + _PLACE.size)
        offset, size = _PLACE.unpack_from(data, start)
        entries.append(Entry(offset, size, data[key : key + length]))
        start = key + length
    return entries


def encode_index(entries: Sequence[Entry]) -> bytes:
    """Return the data of a leaf or inner index block."""
    rows = [_PLACE.pack(*entry[:2]) + entry.key for entry in entries]
    starts = list(accumulate(map(len, rows), initial=0))
    return b"".join([struct.pack(f">{1 + len(starts)}i", len(rows), *starts), *rows])


def decode_index(data: bytes) -> list[Entry]:
    """Read a leaf or inner index block."""
    (count,) = _COUNT.unpack_from(data)
    starts = struct.unpack_from(f">{count + 1}i", data, _COUNT.size)
    rows = data[_COUNT.size * (count + 2) :]
    return [_decode_entry(rows[start:stop]) for start, stop in pairwise(starts)]


def _decode_entry(row: bytes) -> Entry:
    offset, size = _PLACE.unpack_from(row)
    return Entry(offset, size, row[_PLACE.size :])


def entry_size(entry: Entry) -> int:
    """Return the bytes that an entry takes in a leaf or inner index block."""
    return _COUNT.size + _PLACE.size + len(entry.key)


def encode_middle(leaves: Sequence[Entry], blocks: Sequence[int]) -> bytes:
    """Return what stands behind the root's entries: the leaf that has the middle data block, and its place there.

    Args:
        leaves: all of them.
        blocks: how many data blocks each has.
    """
    ends = list(accumulate(blocks))
    middle = (ends[-1] - 1) // 2
    leaf = bisect_right(ends, middle)
    return _MIDDLE.pack(leaves[leaf].offset, leaves[leaf].size, middle - (ends[leaf] - blocks[leaf]))


def _encode_int(value: int) -> bytes:
    """Return a number, not below zero: up to 127 as a byte, else the count of its bytes and these."""
    if value <= 127:
        return bytes([value])
    data = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([144 - len(data)]) + data


def _decode_int(data: bytes, start: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    if data[start] <= 127:
        return data[start], start + 1
    end = start + 1 + 144 - data[start]
    return int.from_bytes(data[start + 1 : end], "big"), end
