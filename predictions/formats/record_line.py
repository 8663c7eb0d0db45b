"""The record line: what the export writes, the mapper reads and the fingerprint is taken of.

The format is the text format of PostgreSQL's COPY (its documentation, "File Formats", "Text Format"): one record a
line, fields separated by a tab, `\\N` for NULL, a backslash escape for each byte that could be taken for either.
The first field is the record ID, then come the model's features, last the label. Whatever the data, a line is one
line to every reader: no raw line feed, carriage return or tab is left in a field.
"""

import gzip
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
    """A column of the source: its name and its type, `integer`, `real`, `date` (or date and time) or `text`."""

    name: str
    type: str

    @property
    def is_number(self) -> bool:
        """Whether the model takes the column as a number; else it is a category."""
        return self.type != "text"

    def __str__(self) -> str:
        return f"{self.name} ({self.type})"


def escape(value: bytes) -> bytes:
    """Return a field's bytes as they stand in a line; NULL is not a value and has its own spelling, `NULL`."""
    return _TO_ESCAPE.sub(lambda match: _ESCAPES[match[0]], value)


def unescape(field: bytes) -> bytes:
    """Return the value of a field that is not `NULL`, the inverse of `escape`.

    As in PostgreSQL, a backslash before any other character stands for that character.
    """
    if b"\\" not in field:
        return field
    return _ESCAPED.sub(lambda match: _UNESCAPES.get(match[1], match[1]), field)


def unpacked(stream: IO[bytes], name: str) -> IO[bytes]:
    """Return the stream of a file of lines, unpacked where the file's name says that a job has packed it."""
    return cast("IO[bytes]", gzip.GzipFile(fileobj=stream)) if name.endswith(PACKED) else stream


def read_blocks(stream: IO[bytes], size: int = BLOCK_BYTES, end: bytes = b"\n") -> Iterator[bytes]:
    """Yield a stream in blocks of whole lines, of about `size` bytes.

    A line ends at a line feed and nowhere else. A last line without one is given `end`.
    """
    pieces: list[bytes] = []
    while piece := stream.read(size):
        whole = piece.rfind(b"\n") + 1
        if whole:
            yield b"".join([*pieces, piece[:whole]])
            pieces = []
        pieces.append(piece[whole:])
    if rest := b"".join(pieces):
        yield rest + end


def split_lines(block: bytes) -> list[bytes]:
    """Return the lines of a block, without their line feeds."""
    return block.split(b"\n")[:-1]


def join_lines(lines: Iterable[bytes]) -> bytes:
    """Return a block of lines, at least one, the inverse of `split_lines`."""
    return b"\n".join(lines) + b"\n"


def field_ends(block: bytes, fields: int) -> np.ndarray:
    """Return where the fields of a block of lines end, as offsets of the separators (shape: lines, fields).

    Args:
        block: whole lines, at least one.
        fields: the number of fields of each line.

    Raises:
        ValueError: a line has another number of fields; `args` has its index and the number of its fields.
    """
    characters = np.frombuffer(block, dtype=np.uint8)
    separators = np.flatnonzero((characters == _TAB) | (characters == _LINE_FEED))
    rows = block.count(b"\n")
    if len(separators) != rows * fields or (characters[separators[fields - 1 :: fields]] != _LINE_FEED).any():
        found = [line.count(SEPARATOR) + 1 for line in split_lines(block)]
        index = next(index for index, count in enumerate(found) if count != fields)
        raise ValueError(index, found[index])
    return separators.reshape(rows, fields)


def first_fields(block: bytes, ends: np.ndarray) -> list[bytes]:
    """Return the first field of each line; `ends` is what `field_ends` found."""
    starts = [0, *(ends[:-1, -1] + 1).tolist()]
    return [block[start:end] for start, end in zip(starts, ends[:, 0].tolist(), strict=True)]


def split_records(block: bytes, fields: int) -> tuple[list[bytes], list[bytes]]:
    """Return the record IDs and the features of a block of record lines.

    Args:
        block: whole lines, at least one.
        fields: the number of fields of each line: ID, features, label.

    Returns:
        For each line its first field, and what lies between that and the last: the features as they stand there.

    Raises:
        ValueError: as `field_ends`.
    """
    ends = field_ends(block, fields)
    bounds = zip((ends[:, 0] + 1).tolist(), ends[:, -2].tolist(), strict=True)
    return first_fields(block, ends), [block[start:end] for start, end in bounds]


def bytes_before(block: bytes, key: bytes) -> int:
    """Return how many bytes of a block the lines before a key take; no key has a tab, so lines are ordered as keys."""
    return sum(len(line) + 1 for line in split_lines(block) if line < key)


def split_columns(block: bytes, fields: int) -> list[list[bytes]]:
    """Return the fields of a block of lines column by column; each line has this number of them."""
    flat = block[:-1].replace(b"\n", SEPARATOR).split(SEPARATOR)
    return [flat[column::fields] for column in range(fields)]


def write_rows(rows: Iterable[Iterable[bytes]]) -> bytes:
    """Return the lines, each with its line feed, of rows of escaped fields; at least one."""
    return join_lines(map(SEPARATOR.join, rows))


def fingerprints(features: Iterable[bytes]) -> list[bytes]:
    """Return the fingerprints of records as scored: xxh3_64 of their feature fields, in 16 hex digits each.

    Args:
        features: of each record, the fields as they stand in its line, in the model's order, tabs between. The label
            is left out: learning whether a flight was late does not make its prediction stale.
    """
    digests = b"".join(map(xxhash.xxh3_64_digest, features))
    return digests.hex("\n", xxhash.xxh3_64().digest_size).encode().split(b"\n")
