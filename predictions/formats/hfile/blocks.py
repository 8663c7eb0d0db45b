"""The blocks of an HFile: a header, the data (compressed if there is a codec), and checksums of both.

There is a CRC32 for every 16,384 bytes of header and data. The header has 33 bytes: kind of the block (8), size of what
follows the header (4), size of the data before compression (4), offset of the previous block of this kind, or -1 (8),
type of the checksums (1), bytes per checksum (4), size of header and data without the checksums (4).
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
    """How blocks are compressed; the numbers are HBase's."""

    GZ = 1
    NONE = 2

    def pack(self, data: bytes) -> bytes:
        """Compress data; the same data give the same bytes, since zlib writes no time into the gzip header."""
        if self is Codec.NONE:
            return data
        # Level 6, zlib's default, made files a fifth smaller, but took three times as long.
        stream = zlib.compressobj(1, wbits=31)
        return stream.compress(data) + stream.flush()

    def unpack(self, data: bytes) -> bytes:
        """Decompress data."""
        return data if self is Codec.NONE else zlib.decompress(data, wbits=31)


class Block(NamedTuple):
    """A block that was read: its kind, its data, the offset of the previous block of its kind, its size in the file."""

    kind: bytes
    data: bytes
    previous: int
    size: int


def encode_block(kind: bytes, data: bytes, previous: int, codec: Codec) -> bytes:
    """Return the bytes of a block, as they are written to the file."""
    packed = codec.pack(data)
    size = HEADER_BYTES + len(packed)
    checked = range(0, size, CHECKED_BYTES)
    header = _HEADER.pack(kind, len(packed) + 4 * len(checked), len(data), previous, _CRC32, CHECKED_BYTES, size)
    body = memoryview(header + packed)
    sums = [zlib.crc32(body[start : start + CHECKED_BYTES]) for start in checked]
    return b"".join([body, struct.pack(f">{len(sums)}I", *sums)])


def block_size(header: bytes) -> int:
    """Return the size of a block in the file, from its header.

    Raises:
        ValueError: this is not the header of a block.
    """
    if len(header) < HEADER_BYTES or header[:8] not in KINDS:
        raise ValueError(f"this is not a block: it begins with {header[:8]!r}")
    return HEADER_BYTES + int(_HEADER.unpack(header)[1])


def decode_block(stored: bytes, codec: Codec) -> Block:
    """Read a block and verify its checksums.

    Raises:
        ValueError, zlib.error: the block is damaged.
    """
    kind, _rest, unpacked_size, previous, checksum_type, checked_bytes, size = _HEADER.unpack_from(stored)
    if (checksum_type, checked_bytes) != (_CRC32, CHECKED_BYTES):
        raise ValueError(
            f"the block has a checksum of type {checksum_type} for every {checked_bytes:,} bytes, "
            f"not a CRC32 for every {CHECKED_BYTES:,}"
        )
    count = -(-size // CHECKED_BYTES)
    if size < HEADER_BYTES or len(stored) != size + 4 * count:
        raise ValueError("the sizes in the header of the block contradict each other")
    body = memoryview(stored)[:size]
    sums = struct.unpack_from(f">{count}I", stored, size)
    for start, expected in zip(range(0, size, CHECKED_BYTES), sums, strict=True):
        if zlib.crc32(body[start : start + CHECKED_BYTES]) != expected:
            raise ValueError("a checksum does not match its bytes")
    data = codec.unpack(bytes(body[HEADER_BYTES:]))
    if len(data) != unpacked_size:
        raise ValueError(f"the block has {len(data):,} bytes of data, but its header says {unpacked_size:,}")
    return Block(kind, data, previous, len(stored))
