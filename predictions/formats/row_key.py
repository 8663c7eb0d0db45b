"""The row key of a record's prediction in HBase, computed from the record ID alone.

It is four hex digits, a colon, and the record ID, escaped as in the record line: for example `e8b7:42`. The digits are
the upper half of the CRC-32 of the escaped ID. They spread IDs of any kind evenly over the regions, without knowing the
data. Keys and IDs are compared as bytes everywhere, so Hadoop Streaming, `LC_ALL=C sort` and HBase sort them alike.
"""

from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from zlib import crc32

import numpy as np

from predictions.formats.record_line import NULL, escape, unescape

PREFIX_DIGITS = 4
MAX_KEY_BYTES = 0x7FFF  # HBase stores the length of a row key as a signed 16-bit number
MAX_ID_BYTES = MAX_KEY_BYTES - PREFIX_DIGITS - 1

_without_prefix = itemgetter(slice(PREFIX_DIGITS + 1, None))
_UNUSUAL = (b"\\", b"\b", b"\f", b"\r", b"\v")  # an ID without these bytes needs no check of its escapes


def row_keys(record_ids: Sequence[bytes]) -> list[bytes]:
    """Return the row keys of escaped record IDs, at least one."""
    checksums = np.fromiter(map(crc32, record_ids), np.uint32, len(record_ids))
    digits = (checksums >> 16).astype(">u2").tobytes().hex("\n", PREFIX_DIGITS // 2).encode().split(b"\n")
    return list(map(b":".join, zip(digits, record_ids, strict=True)))


def record_id(key: bytes) -> bytes:
    """Return the escaped record ID of a row key."""
    return _without_prefix(key)


def record_ids(keys: Iterable[bytes]) -> Iterator[bytes]:
    """Return the escaped record IDs of row keys."""
    return map(_without_prefix, keys)


def unfit(record_ids: Sequence[bytes]) -> dict[int, str]:
    """Find the IDs of record lines that cannot be row keys; return the reason for each, by its index."""
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
    """Return why an escaped record ID cannot be a row key; None if it can."""
    if not record_id:
        return "the ID is empty"
    if record_id == NULL:
        return "the ID is NULL"
    if len(record_id) > MAX_ID_BYTES:
        return f"the ID is {len(record_id):,} bytes long; a row key can hold {MAX_ID_BYTES:,}"
    # Two spellings of one ID would become two row keys.
    if escape(unescape(record_id)) != record_id:
        return "the ID is not escaped as COPY escapes it"
    try:
        record_id.decode()
    except UnicodeDecodeError:
        return "the ID is not valid UTF-8"
    return None


def split_points(regions: int) -> list[bytes]:
    """Return the first row key of each region except the first one, as HBase's HexStringSplit computes them.

    Args:
        regions: number of regions, 1 to 65,536.
    """
    size = 16**PREFIX_DIGITS // regions
    return [f"{size * region:0{PREFIX_DIGITS}x}".encode() for region in range(1, regions)]


def key_range(points: Sequence[str], part: int) -> tuple[bytes, bytes]:
    """Return the first row key of a part and that of the next part; an empty key means no limit."""
    bounds = ["", *points, ""]
    return bounds[part].encode(), bounds[part + 1].encode()
