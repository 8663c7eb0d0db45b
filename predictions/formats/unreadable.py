"""Unreadable lines: lines with a wrong number of fields, or with an ID that cannot be a row key.

They have no row key, but none of them may be lost. The mapper writes a special prediction line for each, with
`unreadable:SPLIT:LINE` in place of the row key, and with the reason and the line in `error`. So they travel like all
other lines, and only those of committed attempts arrive, once each. They sort behind every row key. `predictions score`
takes them out of the job's output, writes them to one file, and refuses the job.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from predictions.formats.prediction_line import COLUMNS, parse_line
from predictions.formats.record_line import (
    NULL,
    SEPARATOR,
    escape,
    field_ends,
    first_fields,
    join_lines,
    split_lines,
    unescape,
    write_rows,
)
from predictions.formats.row_key import unfit, why_unfit

KEY = b"unreadable:"  # "u" is greater than any hex digit
FILE = "unreadable.txt"
HEAD = b"split\tline\treason\ttext\n"
_REASON_END = b": "


class Unreadable(NamedTuple):
    """An unreadable line: its input split, its line number in it (from 1), the reason, and its bytes."""

    split: str
    number: int
    reason: str
    line: bytes


class Sifted(NamedTuple):
    """The records of a block: their lines, where the fields end and the IDs; and the block's unreadable lines."""

    block: bytes
    ends: np.ndarray
    record_ids: list[bytes]
    unreadable: list[Unreadable]


def records(block: bytes) -> bytes:
    """Return the prediction lines of a sorted block without the unreadable lines at its end."""
    if block.startswith(KEY):
        return b""
    records_end = block.find(b"\n" + KEY)
    return block if records_end < 0 else block[: records_end + 1]


def sift(block: bytes, fields: int, split: str, first: int) -> Sifted:
    """Separate the records of a block from its unreadable lines.

    Args:
        block: whole lines, at least one.
        fields: the number of fields of a record line.
        split: the input split of the block.
        first: the line number of the block's first line in that split.
    """
    try:
        ends = field_ends(block, fields)
    except ValueError:
        pass
    else:
        record_ids = first_fields(block, ends)
        if not unfit(record_ids):
            return Sifted(block, ends, record_ids, [])
    readable, unreadable = [], []
    for number, line in enumerate(split_lines(block), first):
        if reason := _why_unreadable(line, fields):
            unreadable.append(Unreadable(split, number, reason, line))
        else:
            readable.append(line)
    if not readable:
        return Sifted(b"", np.empty((0, fields), dtype=np.intp), [], unreadable)
    block = join_lines(readable)
    ends = field_ends(block, fields)
    return Sifted(block, ends, first_fields(block, ends), unreadable)


def _why_unreadable(line: bytes, fields: int) -> str | None:
    count = line.count(SEPARATOR) + 1
    if count != fields:
        return f"{count} fields, not {fields}"
    return why_unfit(line.partition(SEPARATOR)[0])


def prediction_lines(lines: Iterable[Unreadable], scored: bytes, cells: int = len(COLUMNS)) -> bytes:
    """Return the prediction lines that carry unreadable lines, at least one, through the job.

    Args:
        lines: the unreadable lines.
        scored: the release's time.
        cells: the number of columns of the release.
    """
    return write_rows(
        [
            b"%b%b:%012d" % (KEY, escape(split.encode()), number),
            *(*[NULL] * (cells + 1), scored),
            escape(reason.encode() + _REASON_END + line),
        ]
        for split, number, reason, line in lines
    )


def find(block: bytes) -> Iterator[Unreadable]:
    """Yield the unreadable lines in a block of prediction lines."""
    if KEY not in block:
        return
    for line in split_lines(block):
        if line.startswith(KEY):
            fields = parse_line(line)
            split, _colon, number = unescape(fields.row_key.removeprefix(KEY)).decode(errors="replace").rpartition(":")
            reason, _end, text = unescape(fields.error).partition(_REASON_END)
            yield Unreadable(split, int(number), reason.decode(), text)


def file_lines(lines: Iterable[Unreadable]) -> bytes:
    """Return the lines of `unreadable.txt`: split, line number, reason and the line unchanged, with tabs between."""
    return b"".join(
        b"%b\t%d\t%b\t%b\n" % (split.encode(), number, reason.encode(), text) for split, number, reason, text in lines
    )
