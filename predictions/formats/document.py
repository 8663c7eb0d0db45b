"""Documents: write dataclasses as JSON, in files and in HBase cells, and read them.

A JSON object has the fields of the class, in the same order. When it is read, a missing field gets its default, and an
unknown field is ignored, since another version may have written it. An ID digest is written as text
(`predictions.formats.id_digest`). If a class has a field `format`, only documents with its default number are accepted.
"""

import json
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin

from predictions.errors import InputError
from predictions.formats.id_digest import IdDigest

T = TypeVar("T")


def to_file(document: Any) -> bytes:
    """Return a dataclass, or a dictionary of dataclasses, as indented JSON for a file."""
    return json.dumps(_to_json(document), indent=1, allow_nan=False).encode() + b"\n"


def to_cell(document: Any) -> bytes:
    """Return a dataclass, or a dictionary of dataclasses, as JSON on one line, without a line feed."""
    return json.dumps(_to_json(document), allow_nan=False).encode()


def read(kind: type[T], data: bytes, path: str) -> T:
    """Read what `to_file` or `to_cell` wrote.

    Args:
        kind: a dataclass; its fields may hold other dataclasses, lists of dataclasses, or ID digests.
        data: the JSON.
        path: where the JSON comes from, for messages.

    Raises:
        InputError: the document has another format number, or is not a document of this class.
    """
    try:
        values = json.loads(data)
        expected = getattr(kind, "format", None)
        if expected is not None and values.get("format") != expected:
            raise InputError(f"{path}: has format {values.get('format')}, but this version reads format {expected}")
        return _from_json(kind, values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not the expected JSON: {type(error).__name__}: {error}") from error


def _to_json(value: Any) -> Any:
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return {name: _to_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return list(map(_to_json, value))
    return str(value) if isinstance(value, IdDigest) else value


def _from_json(kind: Any, value: Any) -> Any:
    if isinstance(kind, type) and is_dataclass(kind):
        present = [field for field in fields(kind) if field.name in value]
        return kind(**{field.name: _from_json(field.type, value[field.name]) for field in present})
    if kind is IdDigest:
        return IdDigest.parse(value)
    if get_origin(kind) is list:
        return [_from_json(get_args(kind)[0], item) for item in value]
    if NoneType in get_args(kind):  # X | None
        return None if value is None else _from_json(get_args(kind)[0], value)
    return value
