"""The row key: where a record's prediction stands in HBase, computed from the record ID alone.

Four hex digits, a colon and the record ID as it is escaped in the record line, for example `e8b7:42`. The digits are
the upper half of the CRC-32 of those same bytes. They spread any kind of ID evenly over the regions without a look
at the data, and since keys and IDs are compared as bytes everywhere, streaming, `LC_ALL=C sort` and HBase agree.
"""

import struct
from collections.abc import Sequence
from zlib import crc32

PREFIX_DIGITS = 4
MAX_ID_BYTES = 32767 - PREFIX_DIGITS - 1  # HBase keeps the length of a row key in a signed 16-bit number


def row_keys(record_ids: Sequence[bytes]) -> list[bytes]:
    """Return the row keys of escaped record IDs; at least one."""
    prefixes = struct.pack(f">{len(record_ids)}H", *(crc32(record_id) >> 16 for record_id in record_ids))
    digits = prefixes.hex("\n", PREFIX_DIGITS // 2).encode().split(b"\n")
    return list(map(b":".join, zip(digits, record_ids, strict=True)))


def record_id(key: bytes) -> bytes:
    """Return the escaped record ID of a row key."""
    return key[PREFIX_DIGITS + 1 :]
