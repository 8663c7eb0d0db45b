"""The end of an HFile: file info and trailer, both of them Protocol Buffers messages.

The trailer has 4,096 bytes: its magic, the length of the message, the message, zeros, and the version of the format.
File info is a block: its magic, the length of the message, and the message, which repeats field 1: {1: name, 2: value}.
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
    """The numeric fields of the trailer; offsets count from the start of the file, sizes are before compression."""

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
    """Return the bytes of the trailer."""
    values: list[tuple[int, int | bytes]] = [*fields.items(), (_COMPARATOR_FIELD, _COMPARATOR)]
    message = b"".join(_field(number, value) for number, value in sorted(values))
    return (_MAGIC + _delimited(message)).ljust(TRAILER_BYTES - len(_VERSION), b"\0") + _VERSION


def decode_trailer(data: bytes) -> dict[Field, int]:
    """Read the trailer.

    Raises:
        ValueError: this is not a trailer, it has another version or another order of cells, or it has a byte that
            `encode_trailer` would not write.
    """
    if len(data) != TRAILER_BYTES or not data.startswith(_MAGIC):
        raise ValueError("this is not an HFile, or its end is missing")
    if not data.endswith(_VERSION):
        raise ValueError(f"the HFile has version {data[-len(_VERSION) :].hex()}, not {_VERSION.hex()}")
    fields = dict(_fields(_undelimited(data[len(_MAGIC) :])))
    if fields.get(_COMPARATOR_FIELD) != _COMPARATOR:
        raise ValueError(f"the HFile is sorted by {fields.get(_COMPARATOR_FIELD)!r}, not {_COMPARATOR!r}")
    numbers = {field: fields.get(field, 0) for field in Field}
    if not all(isinstance(value, int) for value in numbers.values()) or encode_trailer(numbers) != data:
        raise ValueError("the trailer was changed")
    return numbers


def encode_info(info: Mapping[bytes, bytes]) -> bytes:
    """Return the data of the file info block."""
    pairs = (_field(_NAME, name) + _field(_VALUE, info[name]) for name in sorted(info))
    return _INFO_MAGIC + _delimited(b"".join(_field(_PAIR, pair) for pair in pairs))


def decode_info(data: bytes) -> dict[bytes, bytes]:
    """Read the data of the file info block; ValueError if it is something else."""
    if not data.startswith(_INFO_MAGIC):
        raise ValueError(f"this is not file info: it begins with {data[: len(_INFO_MAGIC)]!r}")
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
            raise ValueError(f"a field has the unknown type {tag & 7}")


def _delimited(message: bytes) -> bytes:
    return _varint(len(message)) + message


def _undelimited(data: bytes) -> bytes:
    size, start = _read_varint(data, 0)
    return data[start : start + size]


def _varint(value: int) -> bytes:
    """Encode a number: seven bits per byte, lowest first; the high bit is set in every byte but the last."""
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def _read_varint(data: bytes, start: int) -> tuple[int, int]:
    """Read a number; return it and the offset of its end."""
    value = shift = 0
    while data[start] > 0x7F:
        value |= (data[start] & 0x7F) << shift
        start, shift = start + 1, shift + 7
    return value | data[start] << shift, start + 1
