"""Python's values, as drivers give them, in record lines and in JSON.

A value has one text, whatever session read it: the export and a lookup go through the same functions.
"""

import base64
import json
import math
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from predictions.errors import InputError
from predictions.formats.record_line import NULL, escape

_HOUR, _MINUTE = timedelta(hours=1), timedelta(minutes=1)


def fields(names: Sequence[str], row: Sequence[Any]) -> list[bytes]:
    """Return a row's values as they stand in a record line.

    Args:
        names: of the columns, for the error.
        row: their values.

    Raises:
        InputError: a value is of a type that has no text here.
    """
    try:
        return [NULL if value is None else escape(_encode(value)) for value in row]
    except (TypeError, OverflowError):
        for name, value in zip(names, row, strict=True):
            field(name, value)  # which of them it is
        raise


def field(name: str, value: Any) -> bytes:
    """Return a value of a column as it stands in a record line; InputError as of `fields`."""
    try:
        return NULL if value is None else escape(_encode(value))
    except (TypeError, OverflowError) as error:
        kind = type(value).__qualname__
        raise InputError(
            f"column {name!r}: a value of the type {kind} has no text ({error}); convert it in a query"
        ) from error


def plain(name: str, value: Any) -> Any:
    """Return a value of a column for JSON: numbers as numbers, NULL as None, bytes in base64, the rest as text."""
    kind = type(value)
    if value is None or kind in (bool, int):
        return value
    if kind in _BYTES:
        return base64.b64encode(value).decode()
    if kind is float and math.isfinite(value):
        return value
    if kind is Decimal and value.is_finite():
        text = _TEXTS[Decimal](value)
        return int(text) if text.removeprefix("-").isdecimal() else float(text)
    field(name, value)  # whether it has a text
    return _encode(value).decode(errors="replace")


def _encode(value: Any) -> bytes:
    # What no UTF-8 can hold a database may hold nevertheless.
    return _text(value).encode(errors="surrogatepass")


def _text(value: Any) -> str:
    for kind in type(value).__mro__:
        if kind in _TEXTS:
            return _TEXTS[kind](value)
    raise TypeError("not one of those that are known")


def _moment(value: datetime) -> str:
    if value.tzinfo is None:
        return value.isoformat(" ")
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ") + "+00"


def _duration(value: timedelta) -> str:
    """Return it as MySQL writes its TIME, whose hours may be more than a day has, and negative."""
    sign, rest = ("-", -value) if value < timedelta() else ("", value)
    hours, rest = divmod(rest, _HOUR)
    minutes, rest = divmod(rest, _MINUTE)
    fraction = f".{rest.microseconds:06}" if rest.microseconds else ""
    return f"{sign}{hours:02}:{minutes:02}:{rest.seconds:02}{fraction}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_text)


_BYTES = (bytes, bytearray, memoryview)
_TEXTS: dict[type, Callable[[Any], str]] = {
    bool: lambda value: "t" if value else "f",
    int: str,
    float: repr,
    Decimal: lambda value: format(value, "f"),
    str: str,
    **dict.fromkeys(_BYTES, lambda value: "\\x" + value.hex()),
    datetime: _moment,
    date: date.isoformat,
    time: time.isoformat,
    timedelta: _duration,
    UUID: str,
    list: _json,
    dict: _json,
    Enum: lambda value: _text(value.value),
}
