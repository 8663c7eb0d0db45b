"""The served release inside a scoring job: reducers take lines from it, and compare their own with it.

    job/current.json                        which release it is and where its lines are; the driver writes it
    hfiles/part-00000.comparison.json       how a region's lines compare with it, as `Comparison.state`

Each reducer reads the lines of its own range of row keys once, while it writes its own. Where they cannot be had,
nothing is compared: `activate` does it later.
"""

import json
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass
from itertools import tee
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
        carried: whether records that have not changed since keep its lines.
    """

    release: str | None
    classes: list[str]
    edges: list[float]
    points: list[str]
    parts: list[str]
    regions: list[str]
    carried: bool = False

    @classmethod
    def of(
        cls,
        release: str | None,
        bins: Bins,
        points: list[str],
        parts: list[str],
        regions: list[str],
        carried: bool = False,
    ) -> "Current":
        """Return it by its bins; where nothing is served, these are of the release that is being scored."""
        classes = [label.decode(BYTES) for label in bins.classes]
        return cls(release, classes, list(bins.edges), points, parts, regions, carried)

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

    def region(self, part: int) -> "CurrentRegion":
        """Return its lines of a region, by the region's number."""
        return CurrentRegion(self, part)


class CurrentRegion:
    """The served release's lines of one region, read once: to fill in, and to compare with what is written.

    Args:
        current: the release.
        part: the region's number.
    """

    def __init__(self, current: Current, part: int) -> None:
        self._current = current
        self._part = part
        start, stop = key_range(current.regions, part)
        read = lines_between(current.points, lambda part: _blocks(current.parts[part]), start, stop)
        [self._lines] = tee(_Lines(current.release, read if current.release else iter(())), 1)

    def fill_in(self, blocks: Iterable[bytes], counts: Counter[str]) -> Iterator[bytes]:
        """Yield the region's blocks of sorted lines, with this release's lines for those that were not scored.

        Args:
            blocks: of the region.
            counts: `carried` is added to.

        Raises:
            InternalError: a line is not there, or none can be had.
        """
        try:
            yield from carry_over(blocks, self._lines, counts) if self._current.carried else blocks
        except LostError as error:
            raise InternalError(str(error)) from error

    def compare(self, written: Iterator[bytes], folder: str) -> None:
        """Compare the region's lines, while they are written, and write what was found into a folder.

        Args:
            written: yields each block once it is written; it is drained whatever happens to the other side.
            folder: of the region's files.
        """
        # Whoever fills in walks through the same lines, at the same pace: what one has read waits for the other.
        lines = copy(self._lines) if self._current.carried else self._lines
        try:
            write_state(compare(lines, written, self._current.bins), folder, self._part)
        except LostError as error:
            print(f"{error}; nothing is compared", file=sys.stderr)
            deque(written, maxlen=0)


class _Lines:
    """Blocks of lines that two may read: what went wrong for one goes wrong for the other."""

    def __init__(self, release: str | None, blocks: Iterator[bytes]) -> None:
        self._release = release
        self._blocks = blocks
        self._lost: LostError | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._lost:
            raise self._lost
        try:
            return next(self._blocks)
        except webhdfs.FAILURES as error:
            why = f"{type(error).__name__}: {error}"
            self._lost = LostError(f"the lines of release {self._release} cannot be had: {why}")
            raise self._lost from error


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
