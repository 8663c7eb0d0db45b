"""The end of an HFile: file info and trailer, both messages of Protocol Buffers.

The trailer is 4,096 bytes: its magic, a message with its length before it, zeros, and the version of the format. File
info is a block: its magic, a message with its length before it, which repeats field 1: {1: name, 2: value}.
"""

from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any

TRAILER_BYTES = 4096

_MAGIC = b'TRABLK"$'
_VERSION = bytes([3, 0, 0, 3])  # minor 3, major 3
_COMPARATOR_FIELD, _COMPARATOR = 11, b"org.apache.hadoop.hbase.CellComparatorImpl"
_INFO_MAGIC = b"PBUF"
_PAIR, _NAME, _VALUE = 1, 1, 2
_NUMBER, _BYTES = 0, 2  # wire types


class Field(IntEnum):
    """The trailer's numbers. Offsets are from the file's beginning; sizes are of data before it was packed."""

    FILE_INFO_OFFSET = 1
    ROOT_INDEX_OFFSET = 2
    INDEX_SIZE = 3
    SIZE = 4
    ROOT_ENTRIES = 5
    META_ENTRIES = 6
    CELLS = 7
    INDEX_LEVELS = 8
    FIRST_DATA_OFFSET = 9
    LAST_DATA_OFFSET = 10
    CODEC = 12


def encode_trailer(fields: Mapping[Field, int]) -> bytes:
    """Return the trailer."""
    values: list[tuple[int, int | bytes]] = [*fields.items(), (_COMPARATOR_FIELD, _COMPARATOR)]
    message = b"".join(_field(number, value) for number, value in sorted(values))
    return (_MAGIC + _delimited(message)).ljust(TRAILER_BYTES - len(_VERSION), b"\0") + _VERSION


def decode_trailer(data: bytes) -> dict[Field, int]:
    """Read the trailer.

    Raises:
        ValueError: it is none, of another version or order, or has a byte that `encode_trailer` would not write.
    """
    if len(data) != TRAILER_BYTES or not data.startswith(_MAGIC):
        raise ValueError("it is no HFile, or its end is missing")
    if not data.endswith(_VERSION):
        raise ValueError(f"it is an HFile of another version: {data[-len(_VERSION) :].hex()}")
    fields = dict(_fields(_undelimited(data[len(_MAGIC) :])))
    if fields.get(_COMPARATOR_FIELD) != _COMPARATOR:
        raise ValueError(f"it is in the order of {fields.get(_COMPARATOR_FIELD)!r}")
    found = {field: fields.get(field, 0) for field in Field}
    if not all(isinstance(value, int) for value in found.values()) or encode_trailer(found) != data:
        raise ValueError("the trailer was changed")
    return found


def encode_info(info: Mapping[bytes, bytes]) -> bytes:
    """Return the data of the file info block."""
    pairs = (_field(_NAME, name) + _field(_VALUE, info[name]) for name in sorted(info))
    return _INFO_MAGIC + _delimited(b"".join(_field(_PAIR, pair) for pair in pairs))


def decode_info(data: bytes) -> dict[bytes, bytes]:
    """Read the file info block; ValueError if it is none."""
    if not data.startswith(_INFO_MAGIC):
        raise ValueError(f"file info begins with {data[: len(_INFO_MAGIC)]!r}")
    pairs = [dict(_fields(pair)) for _number, pair in _fields(_undelimited(data[len(_INFO_MAGIC) :]))]
    return {pair[_NAME]: pair[_VALUE] for pair in pairs}


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3 | _NUMBER) + _varint(value)
    return _varint(number << 3 | _BYTES) + _delimited(value)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    start = 0
    while start < len(message):
        tag, start = _read_varint(message, start)
        value, start = _read_varint(message, start)
        if tag & 7 == _NUMBER:
            yield tag >> 3, value
        elif tag & 7 == _BYTES:
            yield tag >> 3, message[start : start + value]
            start += value
        else:
            raise ValueError(f"a field of type {tag & 7}")


def _delimited(message: bytes) -> bytes:
    return _varint(len(message)) + message


def _undelimited(data: bytes) -> bytes:
    size, start = _read_varint(data, 0)
    return data[start : start + size]


def _varint(value: int) -> bytes:
    """Return a number: seven bits a byte, the lowest first, the highest bit set in all but the last."""
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def _read_varint(data: bytes, start: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    value = shift = 0
    while data[start] > 0x7F:
        value |= (data[start] & 0x7F) << shift
        start, shift = start + 1, shift + 7
    return value | data[start] << shift, start + 1
