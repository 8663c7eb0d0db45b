"""Carry-over: a record that has not changed since the current release was scored keeps its prediction line.

The mapper scores a record that has no mark (`predictions.task.marks`). Of another one it passes on a line that has
neither a prediction nor a time:

    a01b:42 TAB \\N TAB \\N TAB fingerprint TAB \\N TAB \\N

The lines come to the reducer in the order of the current release's. It walks through both, and puts that release's line
in the place of each such line, if row key and fingerprint are the same, byte for byte.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property

from predictions.errors import InternalError
from predictions.formats.prediction_line import END_OF_UNSCORED, PredictionLine, split_block
from predictions.formats.record_line import NULL, SEPARATOR, join_lines, split_lines
from predictions.formats.row_key import record_id

_BETWEEN = SEPARATOR.join((b"", NULL, NULL, b""))  # the row key and the fingerprint
_END = END_OF_UNSCORED[:-1]
_KEY, _RECORD = (PredictionLine._fields.index(name) for name in ("row_key", "record"))


def unscored_lines(keys: Iterable[bytes], fingerprints: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines, without line feeds, of records that are not scored, by their row keys and fingerprints."""
    return (b"%b%b%b%b" % (key, _BETWEEN, mark, _END) for key, mark in zip(keys, fingerprints, strict=True))


def carry_over(blocks: Iterable[bytes], current: Iterable[bytes], counts: Counter[str]) -> Iterator[bytes]:
    """Yield each block of lines with the current release's lines in the place of those that were not scored.

    Args:
        blocks: sorted lines of the mappers.
        current: blocks of the current release's prediction lines, in the same order.
        counts: `carried` is added to.

    Raises:
        InternalError: the current release has no line of the same row key and fingerprint.
    """
    known = _Lines(current)
    for block in blocks:
        lines = split_lines(block)
        places = [place for place, line in enumerate(lines) if line.endswith(_END)]
        unscored = [lines[place] for place in places]
        # Whether any is wanted or not: who reads the same lines beside this walks at the same pace.
        there = known.until(_key(block), set(unscored))
        for place, line in zip(places, unscored, strict=True):
            if not (found := there.get(line)):
                name = record_id(line.partition(SEPARATOR)[0]).decode(errors="replace")
                raise InternalError(
                    f"record {name}: its mark is there, but no line of the current release with its fingerprint; "
                    "score every record (without --changed)"
                )
            lines[place] = found
        counts["carried"] += len(places)
        yield join_lines(lines)


class _Lines:
    """Ordered prediction lines, to walk through."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._block = b""

    def until(self, key: bytes, wanted: set[bytes]) -> dict[bytes, bytes]:
        """Return the next lines up to a row key, by what stands for them unscored, if that is wanted.

        The line of that key itself is there the next time as well: the same record may come once more.
        """
        found = dict[bytes, bytes]()
        while True:
            if wanted and self._block:
                found.update((unscored, self._by_unscored[unscored]) for unscored in wanted & self._by_unscored.keys())
            if self._block and _key(self._block) >= key:
                return found
            if not (block := next(self._blocks, b"")):
                return found
            self._block = block
            self.__dict__.pop("_by_unscored", None)

    @cached_property
    def _by_unscored(self) -> dict[bytes, bytes]:
        columns = split_block(self._block)
        return dict(zip(unscored_lines(columns[_KEY], columns[_RECORD]), split_lines(self._block), strict=True))


def _key(block: bytes) -> bytes:
    """Return the row key of a block's last line."""
    return block[block.rfind(b"\n", 0, -1) + 1 :].partition(SEPARATOR)[0]
