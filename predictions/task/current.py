"""The served release in a scoring job: reducers carry lines over from it, and compare their own lines with it.

    job/current.json                        which release is served and where its lines are; written by the driver
    hfiles/part-00000.comparison.json       the comparison of a region's lines with it, as `Comparisons.state`

Each reducer reads the served release's lines of its own range of row keys once, while it writes its own lines. If they
cannot be read, the reducer compares nothing, and `activate` compares the releases later; with `--changed`, the reducer
fails.
"""

import json
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from predictions.comparison.comparison import Compared, Comparisons, compare, lines_between
from predictions.comparison.distribution import BYTES, Bins
from predictions.errors import InputError, InternalError
from predictions.formats import document
from predictions.formats.names import part_name
from predictions.formats.prediction_line import COLUMNS, Place, block_bytes
from predictions.formats.record_line import read_blocks, unpacked
from predictions.formats.row_key import key_range
from predictions.task import webhdfs
from predictions.task.carry import carry_over

CURRENT_FILE = "current.json"
HDFS = "hdfs://"  # precedes the path of a part file that is on the file system of the job's output


class LostError(Exception):
    """The prediction lines of the served release cannot be read."""


@dataclass(frozen=True)
class CurrentLabel:
    """A label of the release that is being scored, and how it is compared (`predictions.comparison`).

    Args:
        name: the label; None if it is the only one.
        classes: of its classifier's bins, escaped; empty for a regressor.
        edges: of its bins.
        before, after: where its cells are in the lines of the served release and of this one.
    """

    name: str | None
    classes: list[str]
    edges: list[float]
    before: Place | None
    after: Place

    @classmethod
    def of(cls, label: Compared) -> "CurrentLabel":
        """Make it from what is compared."""
        classes = [name.decode(BYTES) for name in label.bins.classes]
        return cls(label.name, classes, list(label.bins.edges), label.before, label.after)

    @property
    def compared(self) -> Compared:
        """What is compared."""
        bins = Bins(tuple(label.encode(BYTES) for label in self.classes), tuple(self.edges))
        return Compared(bins, self.name, self.before, self.after)


@dataclass(frozen=True)
class Current:
    """The release that is served while another one is scored.

    Args:
        release: its ID; None if no release is served.
        labels: what is compared.
        points: the split points between its part files.
        parts: the paths of its part files, in order; those on HDFS begin with `hdfs://`.
        regions: the split points of the release that is being scored.
        columns: the columns of the release that is being scored.
    """

    release: str | None
    labels: list[CurrentLabel]
    points: list[str]
    parts: list[str]
    regions: list[str]
    columns: list[str] = field(default_factory=lambda: list(COLUMNS))

    @classmethod
    def of(
        cls,
        release: str | None,
        labels: Sequence[Compared],
        points: list[str],
        parts: list[str],
        regions: list[str],
        columns: Sequence[str] = COLUMNS,
    ) -> "Current":
        """Make it from what is compared."""
        return cls(release, list(map(CurrentLabel.of, labels)), points, parts, regions, list(columns))

    @classmethod
    def read(cls, path: Path) -> "Current":
        """Read `current.json`.

        Raises:
            InputError: the file cannot be read, or has another format.
        """
        try:
            return document.read(cls, path.read_bytes(), str(path))
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error

    @property
    def compared(self) -> list[Compared]:
        """What is compared."""
        return [label.compared for label in self.labels]

    def region(self, part: int) -> "CurrentRegion":
        """Return the served release's lines of a region, given by its number."""
        return CurrentRegion(self, part)


class CurrentRegion:
    """The served release's lines of one region, to carry over and to compare; they are read once.

    Args:
        current: the served release.
        part: the region's number.
    """

    def __init__(self, current: Current, part: int) -> None:
        self._current = current
        self._part = part
        self._comparison: Comparisons | None = None  # made by `carry_over`

    @property
    def columns(self) -> list[str]:
        """The columns of the release that is being scored."""
        return self._current.columns

    def carry_over(
        self,
        blocks: Iterable[bytes],
        score: Callable[[bytes], bytes],
        scored_at: bytes,
        counts: Counter[str],
        comparing: bool,
    ) -> Iterator[bytes]:
        """Return the prediction lines of the region's records, as `predictions.task.carry.carry_over` does.

        Args:
            blocks: lines of the mappers, one for each row key, in order.
            score: returns the prediction lines of a block of record lines.
            scored_at: the time of what is not carried over.
            counts: the number of lines that are carried over is added to `carried`.
            comparing: whether to compare the releases, for `compare`.

        Raises:
            InternalError: the served release's lines cannot be read.
        """
        self._comparison = Comparisons(self._current.compared) if comparing else None
        served, at_once = self._lines(InternalError), block_bytes(len(self.columns))
        return carry_over(blocks, served, score, scored_at, counts, self._comparison, at_once)

    def compare(self, written: Iterator[bytes], folder: str) -> None:
        """Compare the region's lines with the served release's while they are written; write the comparison to a file.

        Args:
            written: yields each block once it is written; read to its end even if the served lines cannot be read.
            folder: where the region's files are.
        """
        try:
            if self._comparison is None:
                comparison = compare(self._lines(LostError), written, self._current.compared)
            else:
                deque(written, maxlen=0)  # `carry_over` compares
                comparison = self._comparison
            write_state(comparison, folder, self._part)
        except LostError as error:
            print(f"{error}; not comparing the releases", file=sys.stderr)
            deque(written, maxlen=0)

    def _lines(self, failure: type[Exception]) -> Iterator[bytes]:
        current = self._current
        if not current.release:
            return
        start, stop = key_range(current.regions, self._part)
        try:
            yield from lines_between(current.points, lambda part: _blocks(current.parts[part]), start, stop)
        except webhdfs.FAILURES as error:
            reason = f"{type(error).__name__}: {error}"
            raise failure(
                f"cannot read the prediction lines of the served release {current.release}: {reason}"
            ) from error


def _blocks(path: str) -> Iterator[bytes]:
    if path.startswith(HDFS):
        yield from webhdfs.blocks(path.removeprefix(HDFS))
        return
    with open(path, "rb") as file:
        yield from read_blocks(unpacked(file, path))


def comparison_name(part: int) -> str:
    """Return the name of the file in `hfiles` that has a region's comparison."""
    return f"{part_name(part)}.comparison.json"


def write_state(comparison: Comparisons, folder: str, part: int) -> None:
    """Write a region's comparison."""
    path = Path(folder) / comparison_name(part)
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_bytes(document.to_cell(comparison.state()))
    temporary.replace(path)


def read_state(labels: Sequence[Compared], data: bytes) -> Comparisons:
    """Read a region's comparison, as written by `write_state`."""
    return Comparisons.of_state(labels, json.loads(data))
