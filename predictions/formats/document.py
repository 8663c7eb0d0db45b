"""Documents: how dataclasses are kept as JSON, in files and in cells of HBase.

An object has a class's fields, in their order; a field that it lacks has its default, and one that the class lacks is
left out, since another version may have it. An ID digest is text (`predictions.formats.id_digest`). A class with a
field `format` takes documents of the number alone that is its default.
"""

import json
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin

from predictions.errors import InputError
from predictions.formats.id_digest import IdDigest

T = TypeVar("T")


def to_file(document: Any) -> bytes:
    """Return a dataclass, or an object of such, as the JSON of a file."""
    return json.dumps(_plain(document), indent=1, allow_nan=False).encode() + b"\n"


def to_cell(document: Any) -> bytes:
    """Return a dataclass, or an object of such, as JSON in one line without an end."""
    return json.dumps(_plain(document), allow_nan=False).encode()


def read(kind: type[T], data: bytes, path: str) -> T:
    """Read what `to_file` or `to_cell` wrote.

    Args:
        kind: a dataclass, whose fields may hold others, lists of such, or digests.
        data: the JSON.
        path: where it was read from, for messages.

    Raises:
        InputError: it is of another format, or no such document.
    """
    try:
        values = json.loads(data)
        expected = getattr(kind, "format", None)
        if expected is not None and values.get("format") != expected:
            raise InputError(f"{path}: format {values.get('format')}, this version reads format {expected}")
        return _made(kind, values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not the JSON that should be there: {type(error).__name__}: {error}") from error


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return list(map(_plain, value))
    return str(value) if isinstance(value, IdDigest) else value


def _made(kind: Any, value: Any) -> Any:
    if isinstance(kind, type) and is_dataclass(kind):
        return kind(**{each.name: _made(each.type, value[each.name]) for each in fields(kind) if each.name in value})
    if kind is IdDigest:
        return IdDigest.parse(value)
    if get_origin(kind) is list:
        return [_made(get_args(kind)[0], each) for each in value]
    if NoneType in get_args(kind):  # X | None
        return None if value is None else _made(get_args(kind)[0], value)
    return value
