"""The record line: the export writes it, the mapper reads it, and the fingerprint is computed from it.

The format is the text format of PostgreSQL's COPY (its documentation, "File Formats", "Text Format"): one record per
line, fields separated by tabs, `\\N` for NULL, and a backslash escape for each byte that could be mistaken for a
separator or a NULL. The first field is the record ID, then come the features, and last the labels, one for each model.
Whatever the data, every reader sees one line, since no raw line feed, carriage return or tab is left in a field.
"""

import gzip
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, cast

import numpy as np
import xxhash

from predictions.formats.names import PACKED

NULL = b"\\N"
SEPARATOR = b"\t"
BLOCK_BYTES = 2 << 20

_TAB, _LINE_FEED = SEPARATOR[0], ord("\n")

_ESCAPES = {
    b"\b": b"\\b",
    b"\f": b"\\f",
    b"\n": b"\\n",
    b"\r": b"\\r",
    b"\t": b"\\t",
    b"\v": b"\\v",
    b"\\": b"\\\\",
}
_UNESCAPES = {escaped[1:]: raw for raw, escaped in _ESCAPES.items()}
_TO_ESCAPE = re.compile(rb"[\b\f\n\r\t\v\\]")
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)


@dataclass(frozen=True)
class Column:
    """A column of the source.

    Args:
        name: its name.
        type: `integer`, `real`, `date` (with or without a time) or `text`.
        declared: what the database says more exactly: `boolean`, `day`, `timestamp` or `timestamptz` (with a zone);
            empty if it says no more. Only a fitted model that was brought in needs it (`predictions.stages.schema`).
    """

    name: str
    type: str
    declared: str = field(default="", compare=False)

    @property
    def is_number(self) -> bool:
        """Return whether the model takes the column as a number; otherwise it is a category."""
        return self.type != "text"

    def __str__(self) -> str:
        return f"{self.name} ({self.type})"


def escape(value: bytes) -> bytes:
    """Escape a value for a line. NULL is not a value: write `NULL` as it is."""
    if _TO_ESCAPE.search(value) is None:
        return value
    return _TO_ESCAPE.sub(lambda match: _ESCAPES[match[0]], value)


def escape_all(values: Sequence[bytes]) -> Sequence[bytes]:
    """Escape values, of which mostly none has a character to escape; one search shows that."""
    return values if _TO_ESCAPE.search(b" ".join(values)) is None else list(map(escape, values))


def unescape(field: bytes) -> bytes:
    """Return the value of a field that is not `NULL`; the inverse of `escape`.

    As in PostgreSQL, a backslash before any other character stands for that character.
    """
    if b"\\" not in field:
        return field
    return _ESCAPED.sub(lambda match: _UNESCAPES.get(match[1], match[1]), field)


def unpacked(stream: IO[bytes], name: str) -> IO[bytes]:
    """Return the stream of a file of lines, decompressed if the file's name ends with `PACKED`."""
    return cast("IO[bytes]", gzip.GzipFile(fileobj=stream)) if name.endswith(PACKED) else stream


def read_blocks(stream: IO[bytes], size: int = BLOCK_BYTES, end: bytes = b"\n") -> Iterator[bytes]:
    """Yield the stream as blocks of whole lines, of about `size` bytes each.

    Only a line feed ends a line. If the last line has none, `end` is appended to it.
    """
    pieces: list[bytes] = []
    while piece := stream.read(size):
        lines_end = piece.rfind(b"\n") + 1
        if lines_end:
            yield b"".join([*pieces, piece[:lines_end]])
            pieces = []
        pieces.append(piece[lines_end:])
    if rest := b"".join(pieces):
        yield rest + end


def split_lines(block: bytes) -> list[bytes]:
    """Return the lines of a block, without their line feeds."""
    return block.split(b"\n")[:-1]


def join_lines(lines: Iterable[bytes]) -> bytes:
    """Join lines, at least one, into a block; the inverse of `split_lines`."""
    return b"\n".join(lines) + b"\n"


def field_ends(block: bytes, fields: int) -> np.ndarray:
    """Return the offset of the separator or line feed behind each field of a block (shape: lines, fields).

    Args:
        block: whole lines, at least one.
        fields: the number of fields of each line.

    Raises:
        ValueError: a line has another number of fields; `args` is the index of the line and its number of fields.
    """
    characters = np.frombuffer(block, dtype=np.uint8)
    separators = np.flatnonzero((characters == _TAB) | (characters == _LINE_FEED))
    rows = block.count(b"\n")
    if len(separators) != rows * fields or (characters[separators[fields - 1 :: fields]] != _LINE_FEED).any():
        counts = [line.count(SEPARATOR) + 1 for line in split_lines(block)]
        index = next(index for index, count in enumerate(counts) if count != fields)
        raise ValueError(index, counts[index])
    return separators.reshape(rows, fields)


def first_fields(block: bytes, ends: np.ndarray) -> list[bytes]:
    """Return the first field of each line of a block; `ends` is the result of `field_ends`."""
    starts = [0, *(ends[:-1, -1] + 1).tolist()]
    return [block[start:end] for start, end in zip(starts, ends[:, 0].tolist(), strict=True)]


def feature_fields(block: bytes, ends: np.ndarray, labels: int = 1) -> Iterator[bytes]:
    """Yield the feature fields of each record line of a block, with tabs between them: all but the ID and the labels.

    Args:
        block: whole record lines, at least one.
        ends: the result of `field_ends`.
        labels: the number of labels in a line.
    """
    bounds = zip((ends[:, 0] + 1).tolist(), ends[:, -1 - labels].tolist(), strict=True)
    return (block[start:end] for start, end in bounds)


def bytes_before(block: bytes, key: bytes) -> int:
    """Return the size of the lines of a block that come before a key, in bytes.

    No key contains a tab, so lines are in the same order as their keys.
    """
    return sum(len(line) + 1 for line in split_lines(block) if line < key)


def split_columns(block: bytes, fields: int) -> list[list[bytes]]:
    """Return the columns of a block of lines, each with a field per line; every line must have `fields` fields."""
    all_fields = block[:-1].replace(b"\n", SEPARATOR).split(SEPARATOR)
    return [all_fields[column::fields] for column in range(fields)]


def write_rows(rows: Iterable[Iterable[bytes]]) -> bytes:
    """Return the block of lines for rows of escaped fields, at least one row."""
    return join_lines(map(SEPARATOR.join, rows))


def fingerprints(features: Iterable[bytes]) -> list[bytes]:
    """Return the fingerprint of each record: the xxh3_64 of its feature fields, as 16 hex digits.

    Args:
        features: for each record its feature fields, escaped as in the record line, in the model's order, with tabs
            between them. The label is left out: learning whether a flight was late does not make its prediction stale.
    """
    digests = b"".join(map(xxhash.xxh3_64_digest, features))
    return digests.hex("\n", xxhash.xxh3_64().digest_size).encode().split(b"\n")
