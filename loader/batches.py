"""Cut a part's prediction lines into batches: limited in bytes, each within one region, in row key order."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from predictions.errors import InputError
from predictions.formats.record_line import SEPARATOR, split_lines

# Bytes of lines. The request is half as large again, and a framed transport takes at most 2 MB. Between 0.1 and 1 MB
# the size hardly mattered on two cores.
BATCH_BYTES = 250_000


class Batch(NamedTuple):
    """The lines of one request, and the offset in the part at which they end."""

    lines: list[bytes]
    end: int


def batches(
    blocks: Iterable[bytes],
    name: str,
    offset: int,
    bounds: tuple[bytes, bytes],
    starts: Sequence[bytes],
    max_rows: int | None = None,
) -> Iterator[Batch]:
    """Cut a part's lines into batches.

    Args:
        blocks: whole lines, from the offset on.
        name: the part's name, for messages.
        offset: bytes of the part before the first block.
        bounds: the part's first possible row key, and the one before which it ends; an empty key means no limit.
        starts: the first row keys of the table's regions, ascending.
        max_rows: rows of a batch, at most; None: limited by bytes alone.

    Raises:
        InputError: a line is cut off, row keys do not ascend, or a row key belongs to another part.
    """
    first, stop = bounds
    next_starts = sorted(start for start in starts if start > first)
    lines: list[bytes] = []
    size, last_key = 0, b""
    for block in blocks:
        if not block.endswith(b"\n"):
            cut_off = block[block.rfind(b"\n") + 1 :]
            raise InputError(
                f"{name}: it ends in the middle of a line: {cut_off[:80]!r}; remove its folder and score again"
            )
        for line in split_lines(block):
            key = line[: line.find(SEPARATOR)]
            if key <= last_key or key < first or (stop and key >= stop):
                raise InputError(f"{name}: {_misplaced(key, last_key, first, stop)}; remove its folder and score again")
            last_key = key
            crosses = bool(next_starts) and key >= next_starts[0]
            while next_starts and key >= next_starts[0]:
                next_starts.pop(0)
            if lines and (crosses or size + len(line) > BATCH_BYTES or len(lines) == max_rows):
                yield Batch(lines, offset)
                lines, size = [], 0
            lines.append(line)
            size += len(line) + 1
            offset += len(line) + 1
    if lines:
        yield Batch(lines, offset)


def _misplaced(key: bytes, last_key: bytes, first: bytes, stop: bytes) -> str:
    if key <= last_key:
        return f"row key {key!r} comes after {last_key!r}"
    part_range = f"from {first.decode()!r} to before {stop.decode()!r}"
    return f"row key {key!r} belongs to another part: this one has row keys {part_range}"
