"""Carry-over: a record that is unchanged since the served release was scored keeps its prediction line.

The mapper scores only records without a mark (`predictions.task.marks`). For a record with a mark it writes an unscored
line, which has neither a prediction nor a time:

    a01b:42 TAB \\N TAB \\N TAB fingerprint TAB \\N TAB \\N

The reducer gets its lines in the order of the served release's lines. It reads both together, and replaces each
unscored line by the served release's line if row key and fingerprint are the same, byte for byte.
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
    """Yield the unscored lines, without line feeds, of records given by their row keys and fingerprints."""
    return (
        b"%b%b%b%b" % (key, _BETWEEN, fingerprint, _END) for key, fingerprint in zip(keys, fingerprints, strict=True)
    )


def carry_over(blocks: Iterable[bytes], served: Iterable[bytes], counts: Counter[str]) -> Iterator[bytes]:
    """Yield the blocks with each unscored line replaced by the served release's line.

    Args:
        blocks: sorted lines of the mappers.
        served: blocks of the served release's prediction lines, in the same order.
        counts: the number of replaced lines is added to `carried`.

    Raises:
        InternalError: the served release has no line with the same row key and fingerprint.
    """
    served_lines = _ServedLines(served)
    for block in blocks:
        if END_OF_UNSCORED not in block:
            yield block
            continue
        lines = split_lines(block)
        unscored = {number: line for number, line in enumerate(lines) if line.endswith(_END)}
        replacements = served_lines.read_until(_last_key(block), set(unscored.values()))
        for number, line in unscored.items():
            if not (replacement := replacements.get(line)):
                record = record_id(line.partition(SEPARATOR)[0]).decode(errors="replace")
                raise InternalError(
                    f"record {record}: it has a mark, but the served release has no line with its row key and "
                    "fingerprint; score every record (without --changed)"
                )
            lines[number] = replacement
        counts["carried"] += len(unscored)
        yield join_lines(lines)


class _ServedLines:
    """The served release's prediction lines, read once and in order."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._block = b""

    def read_until(self, key: bytes, unscored: set[bytes]) -> dict[bytes, bytes]:
        """Read on up to a row key, and return the served lines that replace unscored lines, by unscored line.

        The block with this row key is kept for the next call: the same record may come once more.
        """
        replacements = dict[bytes, bytes]()
        while True:
            if self._block:
                replacements.update((line, self._by_unscored[line]) for line in unscored & self._by_unscored.keys())
            if self._block and _last_key(self._block) >= key:
                return replacements
            if not (block := next(self._blocks, b"")):
                return replacements
            self._block = block
            self.__dict__.pop("_by_unscored", None)

    @cached_property
    def _by_unscored(self) -> dict[bytes, bytes]:
        columns = split_block(self._block)
        return dict(zip(unscored_lines(columns[_KEY], columns[_RECORD]), split_lines(self._block), strict=True))


def _last_key(block: bytes) -> bytes:
    """Return the row key of a block's last line."""
    return block[block.rfind(b"\n", 0, -1) + 1 :].partition(SEPARATOR)[0]
