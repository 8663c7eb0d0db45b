"""Lines that are no record: another number of fields, or an ID that cannot be a row key.

There is no row for them to stand in, yet none may be lost. The mapper gives each a prediction line of its own kind,
`unreadable:SPLIT:LINE` in place of the row key and the reason and the line in `error`, so that it goes the way that all
lines go: only what a committed attempt wrote arrives, once. It sorts behind every row key. The driver takes these lines
out, writes them into one file and refuses the job.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from predictions.formats.prediction_line import parse_line
from predictions.formats.record_line import (
    NULL,
    SEPARATOR,
    escape,
    join_lines,
    split_lines,
    split_records,
    unescape,
    write_rows,
)
from predictions.formats.row_key import unfit, why_unfit

KEY = b"unreadable:"  # "u" is greater than any hex digit
FILE = "unreadable.txt"
HEAD = b"split\tline\treason\ttext\n"
_BETWEEN = b": "


class Unreadable(NamedTuple):
    """A line that is no record: its split, its number there (from 1), the reason, and its bytes."""

    split: str
    number: int
    reason: str
    line: bytes


class Sifted(NamedTuple):
    """A block's records, and its other lines."""

    block: bytes
    record_ids: list[bytes]
    features: list[bytes]
    unreadable: list[Unreadable]


def records(block: bytes) -> bytes:
    """Return the lines of a sorted block that stand for records."""
    if block.startswith(KEY):
        return b""
    first = block.find(b"\n" + KEY)
    return block if first < 0 else block[: first + 1]


def sift(block: bytes, fields: int, split: str, first: int) -> Sifted:
    """Part the records of a block from its other lines.

    Args:
        block: whole lines, at least one.
        fields: the number of fields of a record line.
        split: which the block is of.
        first: the number of the block's first line there.
    """
    try:
        record_ids, features = split_records(block, fields)
    except ValueError:
        pass
    else:
        if not unfit(record_ids):
            return Sifted(block, record_ids, features, [])
    records, others = [], []
    for number, line in enumerate(split_lines(block), first):
        if reason := _why_unreadable(line, fields):
            others.append(Unreadable(split, number, reason, line))
        else:
            records.append(line)
    if not records:
        return Sifted(b"", [], [], others)
    block = join_lines(records)
    return Sifted(block, *split_records(block, fields), others)


def _why_unreadable(line: bytes, fields: int) -> str | None:
    found = line.count(SEPARATOR) + 1
    if found != fields:
        return f"{found} fields, not {fields}"
    return why_unfit(line.partition(SEPARATOR)[0])


def prediction_lines(lines: Iterable[Unreadable], scored: bytes) -> bytes:
    """Return the lines that carry unreadable lines through the job; at least one."""
    return write_rows(
        [
            b"%b%b:%012d" % (KEY, escape(split.encode()), number),
            *(NULL, NULL, NULL, scored),
            escape(reason.encode() + _BETWEEN + line),
        ]
        for split, number, reason, line in lines
    )


def find(block: bytes) -> Iterator[Unreadable]:
    """Yield the unreadable lines that a block of prediction lines carries."""
    if KEY not in block:
        return
    for line in split_lines(block):
        if line.startswith(KEY):
            fields = parse_line(line)
            split, _colon, number = unescape(fields.row_key.removeprefix(KEY)).decode(errors="replace").rpartition(":")
            reason, _between, text = unescape(fields.error).partition(_BETWEEN)
            yield Unreadable(split, int(number), reason.decode(), text)


def file_lines(lines: Iterable[Unreadable]) -> bytes:
    """Return lines of the file for a person: split, line number, reason and the line as it stands, tabs between."""
    return b"".join(
        b"%b\t%d\t%b\t%b\n" % (split.encode(), number, reason.encode(), text) for split, number, reason, text in lines
    )
