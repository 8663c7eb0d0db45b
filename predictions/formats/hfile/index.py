"""The index of an HFile: the offset, size and first key of each data block.

A root index block is a sequence of entries: offset (8 bytes), size (4), length of the key as Hadoop's
WritableUtils.writeVInt writes it, the key. A leaf or inner index block begins with the number of its entries (4) and,
for binary search, the offset of each entry and of the end of the last one (4 each); its entries are offset (8), size
(4), key.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

_LOCATION = struct.Struct(">qi")
_MIDDLE_KEY = struct.Struct(">qii")
_COUNT = struct.Struct(">i")


class Entry(NamedTuple):
    """An index entry: the offset of a block in the file, its size there, and its first key."""

    offset: int
    size: int
    key: bytes


def encode_root(entries: Iterable[Entry]) -> bytes:
    """Return the data of a root index block."""
    return b"".join(_LOCATION.pack(*entry[:2]) + _encode_int(len(entry.key)) + entry.key for entry in entries)


def decode_root(data: bytes, count: int) -> list[Entry]:
    """Read the first `count` entries of a root index block; HBase finds the middle key behind the last one."""
    entries, start = [], 0
    for _ in range(count):
        key_size, key_start = _decode_int(data, start + _LOCATION.size)
        offset, size = _LOCATION.unpack_from(data, start)
        start = key_start + key_size
        entries.append(Entry(offset, size, data[key_start:start]))
    return entries


def encode_index(entries: Sequence[Entry]) -> bytes:
    """Return the data of a leaf or inner index block."""
    encoded = [_LOCATION.pack(*entry[:2]) + entry.key for entry in entries]
    bounds = list(accumulate(map(len, encoded), initial=0))
    return b"".join([struct.pack(f">{1 + len(bounds)}i", len(encoded), *bounds), *encoded])


def decode_index(data: bytes) -> list[Entry]:
    """Read a leaf or inner index block."""
    (count,) = _COUNT.unpack_from(data)
    bounds = struct.unpack_from(f">{count + 1}i", data, _COUNT.size)
    encoded = data[_COUNT.size * (count + 2) :]
    return [_decode_entry(encoded[start:stop]) for start, stop in pairwise(bounds)]


def _decode_entry(data: bytes) -> Entry:
    offset, size = _LOCATION.unpack_from(data)
    return Entry(offset, size, data[_LOCATION.size :])


def entry_size(entry: Entry) -> int:
    """Return the size of an entry in a leaf or inner index block, in bytes."""
    return _COUNT.size + _LOCATION.size + len(entry.key)


def encode_middle(leaves: Sequence[Entry], blocks: Sequence[int]) -> bytes:
    """Return the middle key, which follows the root's entries: the leaf of the middle data block, and its index there.

    Args:
        leaves: the entries of all leaves.
        blocks: the number of data blocks of each leaf.
    """
    ends = list(accumulate(blocks))
    middle = (ends[-1] - 1) // 2
    leaf = bisect_right(ends, middle)
    return _MIDDLE_KEY.pack(leaves[leaf].offset, leaves[leaf].size, middle - (ends[leaf] - blocks[leaf]))


def _encode_int(value: int) -> bytes:
    """Encode a number that is not negative: up to 127 as one byte, else as a byte for its size and its bytes."""
    if value <= 127:
        return bytes([value])
    data = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([144 - len(data)]) + data


def _decode_int(data: bytes, start: int) -> tuple[int, int]:
    """Read a number; return it and the offset of its end."""
    if data[start] <= 127:
        return data[start], start + 1
    end = start + 1 + 144 - data[start]
    return int.from_bytes(data[start + 1 : end], "big"), end
