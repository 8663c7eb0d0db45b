"""The row key: where a record's prediction stands in HBase, computed from the record ID alone.

Four hex digits, a colon and the record ID as it is escaped in the record line, for example `e8b7:42`. The digits are
the upper half of the CRC-32 of those same bytes. They spread any kind of ID evenly over the regions without a look
at the data, and since keys and IDs are compared as bytes everywhere, streaming, `LC_ALL=C sort` and HBase agree.
"""

import struct
from collections.abc import Sequence
from zlib import crc32

from predictions.formats.record_line import NULL, escape, unescape

PREFIX_DIGITS = 4
MAX_KEY_BYTES = 0x7FFF  # HBase keeps the length of a row key in a signed 16-bit number
MAX_ID_BYTES = MAX_KEY_BYTES - PREFIX_DIGITS - 1

_UNUSUAL = (b"\\", b"\b", b"\f", b"\r", b"\v")  # in an ID; without them there is nothing to look at closely


def row_keys(record_ids: Sequence[bytes]) -> list[bytes]:
    """Return the row keys of escaped record IDs; at least one."""
    prefixes = struct.pack(f">{len(record_ids)}H", *(crc32(record_id) >> 16 for record_id in record_ids))
    digits = prefixes.hex("\n", PREFIX_DIGITS // 2).encode().split(b"\n")
    return list(map(b":".join, zip(digits, record_ids, strict=True)))


def record_id(key: bytes) -> bytes:
    """Return the escaped record ID of a row key."""
    return key[PREFIX_DIGITS + 1 :]


def unfit(record_ids: Sequence[bytes]) -> dict[int, str]:
    """Return which fields, taken from record lines, cannot be row keys as IDs: their index, and the reason."""
    joined = b"\n".join(record_ids)
    if (
        joined.isascii()
        and not any(character in joined for character in _UNUSUAL)
        and all(record_ids)
        and max(map(len, record_ids), default=0) <= MAX_ID_BYTES
    ):
        return {}
    return {index: reason for index, record_id in enumerate(record_ids) if (reason := why_unfit(record_id))}


def why_unfit(record_id: bytes) -> str | None:
    """Return why an escaped record ID cannot be a row key; None where it can."""
    if not record_id:
        return "the ID is empty"
    if record_id == NULL:
        return "the ID is NULL"
    if len(record_id) > MAX_ID_BYTES:
        return f"the ID is {len(record_id):,} bytes long, a row key takes {MAX_ID_BYTES:,}"
    # Two spellings of one ID would be two row keys.
    if escape(unescape(record_id)) != record_id:
        return "the ID is not escaped as COPY escapes it"
    try:
        record_id.decode()
    except UnicodeDecodeError:
        return "the ID is not valid UTF-8"
    return None


def split_points(regions: int) -> list[bytes]:
    """Return the first row key of each region but the first, as HBase's HexStringSplit computes them.

    Args:
        regions: how many regions, 1 to 65,536.
    """
    size = 16**PREFIX_DIGITS // regions
    return [f"{size * region:0{PREFIX_DIGITS}x}".encode() for region in range(1, regions)]


def key_range(points: Sequence[str], part: int) -> tuple[bytes, bytes]:
    """Return the row keys between which a part lies: its first one and that of the next, empty at the ends."""
    bounds = ["", *points, ""]
    return bounds[part].encode(), bounds[part + 1].encode()
