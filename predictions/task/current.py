"""The comparison with the current release inside a scoring job, by the reducers.

    job/against.json                        what is compared with; the driver writes it, the job ships it
    hfiles/part-00000.comparison.json       what a reducer found in its region, as `Comparison.state`

Each reducer reads the current release's lines of its own range while it writes its own. Where they cannot be had, the
job goes on without, and `activate` compares.
"""

import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from predictions.comparison.comparison import Comparison, compare, lines_between
from predictions.comparison.distribution import BYTES, Bins
from predictions.formats.names import part_name
from predictions.formats.row_key import key_range
from predictions.task.download import FAILURES, blocks

AGAINST_FILE = "against.json"


class LostError(Exception):
    """The current release's lines cannot be had."""


@dataclass(frozen=True)
class Against:
    """What a release that is being scored is compared with.

    Args:
        release: that is current; None where the lines' own distribution is all that is wanted.
        classes: of its classifier, escaped; empty for a regressor.
        edges: of its bins (`predictions.comparison.distribution.Bins`).
        points: the split points between its part files.
        parts: the paths of these on HDFS, in their order.
        regions: the split points of the release that is being scored.
    """

    release: str | None
    classes: list[str]
    edges: list[float]
    points: list[str]
    parts: list[str]
    regions: list[str]

    @classmethod
    def of(cls, release: str | None, bins: Bins, points: list[str], parts: list[str], regions: list[str]) -> "Against":
        """Return what is compared with, from the current release's bins, or from the own ones where there is none."""
        return cls(release, [label.decode(BYTES) for label in bins.classes], list(bins.edges), points, parts, regions)

    @property
    def bins(self) -> Bins:
        """The bins of both distributions."""
        return Bins(tuple(label.encode(BYTES) for label in self.classes), tuple(self.edges))

    def to_json(self) -> bytes:
        """Return it as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def parse(cls, data: bytes) -> "Against":
        """Read what `to_json` returned."""
        return cls(**json.loads(data))

    def compare(self, written: Iterator[bytes], part: int) -> Comparison | None:
        """Compare a region's lines, while they are written, with the current release's.

        Args:
            written: yields each block once it is written; it is drained whatever happens to the other side.
            part: the region's number.

        Returns:
            None where the current release's lines could not be had.
        """
        try:
            return compare(self.lines(part), written, self.bins)
        except LostError as error:
            print(f"the lines of release {self.release} cannot be had, nothing is compared: {error}", file=sys.stderr)
            deque(written, maxlen=0)
            return None

    def lines(self, part: int) -> Iterable[bytes]:
        """Yield the current release's lines of a region, by its number; LostError where they cannot be had."""
        if not self.release:
            return
        start, stop = key_range(self.regions, part)
        try:
            yield from lines_between(self.points, lambda part: blocks(self.parts[part]), start, stop)
        except FAILURES as error:
            raise LostError(f"{type(error).__name__}: {error}") from error


def comparison_name(part: int) -> str:
    """Return the name of what a reducer found, below its folder."""
    return f"{part_name(part)}.comparison.json"


def write_state(found: Comparison, folder: str, part: int) -> None:
    """Write what a reducer found."""
    path = os.path.join(folder, comparison_name(part))
    with open(f"{path}.part", "w") as file:
        json.dump(found.state(), file, allow_nan=False)
    os.replace(file.name, path)


def read_state(bins: Bins, data: bytes) -> Comparison:
    """Read what `write_state` wrote."""
    return Comparison.of_state(bins, json.loads(data))
