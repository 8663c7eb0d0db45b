"""The blocks of an HFile: a header, the data (packed, where there is a codec), a CRC32 for every 16,384 bytes of both.

The header, 33 bytes: kind (8), bytes that follow it (4), bytes of the data before it was packed (4), where the previous
block of this kind is, or -1 (8), type of the checksums (1), bytes that one is of (4), bytes of header and data (4).
"""

import struct
import zlib
from enum import Enum
from typing import NamedTuple

DATA = b"DATABLK*"
LEAF_INDEX, INNER_INDEX, ROOT_INDEX = b"IDXLEAF2", b"IDXINTE2", b"IDXROOT2"
FILE_INFO = b"FILEINF2"
KINDS = (DATA, LEAF_INDEX, INNER_INDEX, ROOT_INDEX, FILE_INFO)

_HEADER = struct.Struct(">8siiqBii")
_CRC32, CHECKED_BYTES = 1, 16_384
HEADER_BYTES = _HEADER.size


class Codec(Enum):
    """How blocks are packed; the numbers are HBase's."""

    GZ = 1
    NONE = 2

    def pack(self, data: bytes) -> bytes:
        """Return data as it stands in a block; gzip's head has no time in it, so the same data give the same bytes."""
        if self is Codec.NONE:
            return data
        stream = zlib.compressobj(1, wbits=31)  # at 6, zlib's default, files were a fifth smaller in thrice the time
        return stream.compress(data) + stream.flush()

    def unpack(self, data: bytes) -> bytes:
        """Return what was packed."""
        return data if self is Codec.NONE else zlib.decompress(data, wbits=31)


class Block(NamedTuple):
    """A block as it was read: its kind, its data, where the previous one of its kind is, and its size in the file."""

    kind: bytes
    data: bytes
    previous: int
    size: int


def encode_block(kind: bytes, data: bytes, previous: int, codec: Codec) -> bytes:
    """Return a block as it stands in the file."""
    packed = codec.pack(data)
    size = HEADER_BYTES + len(packed)
    checked = range(0, size, CHECKED_BYTES)
    header = _HEADER.pack(kind, len(packed) + 4 * len(checked), len(data), previous, _CRC32, CHECKED_BYTES, size)
    body = memoryview(header + packed)
    sums = [zlib.crc32(body[start : start + CHECKED_BYTES]) for start in checked]
    return b"".join([body, struct.pack(f">{len(sums)}I", *sums)])


def block_size(header: bytes) -> int:
    """Return a block's size in the file, by its header.

    Raises:
        ValueError: there is none.
    """
    if len(header) < HEADER_BYTES or header[:8] not in KINDS:
        raise ValueError(f"no block begins with {header[:8]!r}")
    return HEADER_BYTES + int(_HEADER.unpack(header)[1])


def decode_block(stored: bytes, codec: Codec) -> Block:
    """Read a block.

    Raises:
        ValueError, zlib.error: it is not what was written.
    """
    kind, _rest, unpacked, previous, checksum, every, size = _HEADER.unpack_from(stored)
    if (checksum, every) != (_CRC32, CHECKED_BYTES):
        raise ValueError(f"checksums of type {checksum} for {every:,} bytes each, not CRC32 for {CHECKED_BYTES:,}")
    count = -(-size // CHECKED_BYTES)
    if size < HEADER_BYTES or len(stored) != size + 4 * count:
        raise ValueError("its sizes do not fit together")
    body = memoryview(stored)[:size]
    sums = struct.unpack_from(f">{count}I", stored, size)
    for start, expected in zip(range(0, size, CHECKED_BYTES), sums, strict=True):
        if zlib.crc32(body[start : start + CHECKED_BYTES]) != expected:
            raise ValueError("a checksum is not that of its bytes")
    data = codec.unpack(bytes(body[HEADER_BYTES:]))
    if len(data) != unpacked:
        raise ValueError(f"{len(data):,} bytes of data, not {unpacked:,}")
    return Block(kind, data, previous, len(stored))
