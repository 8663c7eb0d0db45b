"""The served release inside a scoring job: reducers take lines from it, and compare their own with it.

    job/current.json                        which release it is and where its lines are; the driver writes it
    hfiles/part-00000.comparison.json       how a region's lines compare with it, as `Comparison.state`

Each reducer reads the lines of its own range of row keys while it writes its own. Where they cannot be had, nothing is
compared: `activate` does it later.
"""

import json
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from predictions.comparison.comparison import Comparison, compare, lines_between
from predictions.comparison.distribution import BYTES, Bins
from predictions.errors import InputError, InternalError
from predictions.formats import document
from predictions.formats.names import part_name
from predictions.formats.record_line import read_blocks, unpacked
from predictions.formats.row_key import key_range
from predictions.task import webhdfs
from predictions.task.carry import carry_over

CURRENT_FILE = "current.json"
HDFS = "hdfs://"  # before the path of a part that is on the file system of the job's output


class LostError(Exception):
    """The lines of the served release cannot be had."""


@dataclass(frozen=True)
class Current:
    """The release that is served while another one is scored.

    Args:
        release: its ID; None where nothing is served.
        classes: of its classifier, escaped; empty for a regressor.
        edges: of its bins (`predictions.comparison.distribution.Bins`).
        points: the split points between its part files.
        parts: the paths of these, in their order; on HDFS, with `hdfs://` before them.
        regions: the split points of the release that is being scored.
    """

    release: str | None
    classes: list[str]
    edges: list[float]
    points: list[str]
    parts: list[str]
    regions: list[str]

    @classmethod
    def of(cls, release: str | None, bins: Bins, points: list[str], parts: list[str], regions: list[str]) -> "Current":
        """Return it by its bins; where nothing is served, these are of the release that is being scored."""
        return cls(release, [label.decode(BYTES) for label in bins.classes], list(bins.edges), points, parts, regions)

    @classmethod
    def read(cls, path: Path) -> "Current":
        """Read `current.json`.

        Raises:
            InputError: it is not there, or is another file.
        """
        try:
            return document.read(cls, path.read_bytes(), str(path))
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error

    @property
    def bins(self) -> Bins:
        """The bins of both distributions."""
        return Bins(tuple(label.encode(BYTES) for label in self.classes), tuple(self.edges))

    def fill_in(self, blocks: Iterable[bytes], part: int, counts: Counter[str]) -> Iterator[bytes]:
        """Yield blocks of sorted lines, with this release's lines in the place of those that were not scored.

        Args:
            blocks: of a region.
            part: the region's number.
            counts: `carried` is added to.

        Raises:
            InternalError: a line is not there, or none can be had.
        """
        try:
            yield from carry_over(blocks, self.lines(part), counts)
        except LostError as error:
            raise InternalError(f"the lines of release {self.release} cannot be had: {error}") from error

    def compare(self, written: Iterator[bytes], folder: str, part: int) -> None:
        """Compare a region's lines, while they are written, and write what was found into a folder.

        Args:
            written: yields each block once it is written; it is drained whatever happens to the other side.
            folder: of the region's files.
            part: the region's number.
        """
        try:
            write_state(compare(self.lines(part), written, self.bins), folder, part)
        except LostError as error:
            print(f"the lines of release {self.release} cannot be had, nothing is compared: {error}", file=sys.stderr)
            deque(written, maxlen=0)

    def lines(self, part: int) -> Iterable[bytes]:
        """Yield this release's lines of a region, by its number; LostError where they cannot be had."""
        if not self.release:
            return
        start, stop = key_range(self.regions, part)
        try:
            yield from lines_between(self.points, lambda part: _blocks(self.parts[part]), start, stop)
        except webhdfs.FAILURES as error:
            raise LostError(f"{type(error).__name__}: {error}") from error


def _blocks(path: str) -> Iterator[bytes]:
    if path.startswith(HDFS):
        yield from webhdfs.blocks(path.removeprefix(HDFS))
        return
    with open(path, "rb") as file:
        yield from read_blocks(unpacked(file, path))


def comparison_name(part: int) -> str:
    """Return the name of what a reducer found, below its folder."""
    return f"{part_name(part)}.comparison.json"


def write_state(found: Comparison, folder: str, part: int) -> None:
    """Write what a reducer found."""
    path = Path(folder) / comparison_name(part)
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_bytes(document.to_cell(found.state()))
    temporary.replace(path)


def read_state(bins: Bins, data: bytes) -> Comparison:
    """Read what `write_state` wrote."""
    return Comparison.of_state(bins, json.loads(data))
