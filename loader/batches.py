"""A part's prediction lines in batches: cut by bytes, each within one region, in the order of the row keys."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from predictions.errors import InputError
from predictions.formats.record_line import SEPARATOR, split_lines

# Of lines; as a request they are half as much again. A framed transport takes 2 MB. Between 0.1 and 1 MB it hardly
# mattered on two cores.
BATCH_BYTES = 250_000


class Batch(NamedTuple):
    """Lines that are sent at once, and where in the part they end."""

    lines: list[bytes]
    end: int


def batches(
    blocks: Iterable[bytes],
    name: str,
    offset: int,
    bounds: tuple[bytes, bytes],
    starts: Sequence[bytes],
    rows: int | None = None,
) -> Iterator[Batch]:
    """Cut a part's lines into batches.

    Args:
        blocks: whole lines, from the offset on.
        name: the part's, for messages.
        offset: bytes of the part that stand before the first block.
        bounds: the row keys between which the part must lie; an empty one bounds nothing.
        starts: the first row keys of the table's regions, ascending.
        rows: of a batch, at most; None for as many as there is room for.

    Raises:
        InputError: a line is cut off, or its row key does not ascend or is not the part's.
    """
    first, stop = bounds
    later = sorted(start for start in starts if start > first)
    lines: list[bytes] = []
    size, last = 0, b""
    for block in blocks:
        if not block.endswith(b"\n"):
            rest = block[block.rfind(b"\n") + 1 :]
            raise InputError(f"{name}: it ends in the middle of a line: {rest[:80]!r}")
        for line in split_lines(block):
            key = line[: line.find(SEPARATOR)]
            if key <= last or key < first or (stop and key >= stop):
                raise InputError(f"{name}: {_misplaced(key, last, first, stop)}; score the release again")
            last = key
            crosses = bool(later) and key >= later[0]
            while later and key >= later[0]:
                later.pop(0)
            if lines and (crosses or size + len(line) > BATCH_BYTES or len(lines) == rows):
                yield Batch(lines, offset)
                lines, size = [], 0
            lines.append(line)
            size += len(line) + 1
            offset += len(line) + 1
    if lines:
        yield Batch(lines, offset)


def _misplaced(key: bytes, last: bytes, first: bytes, stop: bytes) -> str:
    if key <= last:
        return f"row key {key!r} comes after {last!r}"
    return f"row key {key!r} is another part's: this one's are from {first.decode()!r} to before {stop.decode()!r}"
