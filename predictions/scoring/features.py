"""Decode the fields of record lines: one definition of what is a number, a date and a category, for all engines."""

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from predictions.formats.record_line import NULL, Column, unescape

LARGEST = float(np.finfo(np.float32).max)  # scikit-learn's trees compute in single precision, and raise beyond it
TOO_LARGE = "too large a number"
MEMO_BYTES = 8 << 20  # the largest memo of decoded fields of a column, so that memory stays bounded
ENTRY_BYTES = 200  # what an entry of the memo takes in addition to its field
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DATE = re.compile(
    r"[+-]?\d{4,}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d{1,6})?)?)?(Z|[+-]\d\d(:?\d\d){0,2})?( BC)?", re.ASCII
)


class Decoder(dict[bytes, Any]):
    """A memo of a column's values by field: most columns repeat few values, so each is decoded once.

    `bad` holds the fields that are not a value of the column's type, with the reason.
    """

    missing: Any = np.nan

    def __init__(self) -> None:
        super().__init__()
        self.bad: dict[bytes, str] = {}
        self.begin()

    def begin(self) -> None:
        """Empty the memo: it then holds NULL alone."""
        self.clear()
        self.bad.clear()
        self._bytes = 0
        self[NULL] = self.missing

    def __missing__(self, field: bytes) -> Any:
        try:
            value = self.decode(field)
        except ValueError as error:
            self.bad[field] = str(error)
            value = self.missing
        self[field] = value
        self._bytes += len(field) + ENTRY_BYTES
        return value

    def decode(self, field: bytes) -> Any:
        raise NotImplementedError

    def forget(self) -> None:
        """Empty the memo if it has become too large; called between blocks."""
        if self._bytes > MEMO_BYTES:
            self.begin()


class NumberDecoder(Decoder):
    """Decode the fields of a number column to floats."""

    def decode(self, field: bytes) -> float:
        if b"_" in field:  # float() would accept 1_000
            raise ValueError("not a number")
        try:
            number = float(field)
        except ValueError:
            raise ValueError("not a number") from None
        if math.isinf(number):
            raise ValueError("not a finite number")
        if abs(number) > LARGEST:
            raise ValueError(TOO_LARGE)
        return number


def parse_date(field: bytes) -> datetime:
    """Return the moment of a date in ISO 8601, with its zone, by default UTC; raise ValueError if it is none."""
    text = field.decode(errors="replace")
    if not _DATE.fullmatch(text):
        raise ValueError("a date out of range" if text.lstrip("-") == "infinity" else "not a date")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("a date out of range") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


class DateDecoder(Decoder):
    """Decode the fields of a date column, ISO 8601 as databases write it, to days since 1970 (by default in UTC)."""

    def decode(self, field: bytes) -> float:
        return (parse_date(field) - _EPOCH) / timedelta(days=1)


class CategoryDecoder(Decoder):
    """Decode the fields of a category column to strings."""

    def decode(self, field: bytes) -> str:
        try:
            return unescape(field).decode()
        except UnicodeDecodeError:
            raise ValueError("not valid UTF-8") from None


def decoder_for(column: Column) -> Decoder:
    """Return the decoder of a column's fields."""
    if column.type == "date":
        return DateDecoder()
    return NumberDecoder() if column.is_number else CategoryDecoder()
