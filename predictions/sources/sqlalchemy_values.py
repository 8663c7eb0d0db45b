"""Write the Python values that drivers return, as fields of record lines and in JSON.

A value has the same text whatever session read it: the export and lookups use the same functions.
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
    """Return a row's values as fields of a record line.

    Args:
        names: the columns' names, for the error.
        row: the columns' values.

    Raises:
        InputError: a value has a type that cannot be written.
    """
    try:
        return [NULL if value is None else escape(_encode(value)) for value in row]
    except (TypeError, OverflowError):
        for name, value in zip(names, row, strict=True):
            field(name, value)  # raises for the column that is to blame
        raise


def field(name: str, value: Any) -> bytes:
    """Return a value as a field of a record line.

    Raises:
        InputError: the value has a type that cannot be written.
    """
    try:
        return NULL if value is None else escape(_encode(value))
    except (TypeError, OverflowError) as error:
        type_name = type(value).__qualname__
        raise InputError(
            f"column {name!r}: a value of the type {type_name} cannot be written as text ({error}); convert it in a "
            "query (database.query)"
        ) from error


def plain(name: str, value: Any) -> Any:
    """Return a value of a column for JSON: numbers as numbers, NULL as None, bytes in base64, the rest as text."""
    type_ = type(value)
    if value is None or type_ in (bool, int):
        return value
    if type_ in _BYTES:
        return base64.b64encode(value).decode()
    if type_ is float and math.isfinite(value):
        return value
    if type_ is Decimal and value.is_finite():
        text = _TEXTS[Decimal](value)
        return int(text) if text.removeprefix("-").isdecimal() else float(text)
    field(name, value)  # raises InputError if the type cannot be written
    return _encode(value).decode(errors="replace")


def _encode(value: Any) -> bytes:
    # A database may hold surrogates, which are not valid UTF-8.
    return _text(value).encode(errors="surrogatepass")


def _text(value: Any) -> str:
    for type_ in type(value).__mro__:
        if type_ in _TEXTS:
            return _TEXTS[type_](value)
    raise TypeError("unknown type")


def _datetime(value: datetime) -> str:
    if value.tzinfo is None:
        return value.isoformat(" ")
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ") + "+00"


def _duration(value: timedelta) -> str:
    """Return a duration as MySQL writes its TIME, which may be negative or have more hours than a day."""
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
    datetime: _datetime,
    date: date.isoformat,
    time: time.isoformat,
    timedelta: _duration,
    UUID: str,
    list: _json,
    dict: _json,
    Enum: lambda value: _text(value.value),
}
