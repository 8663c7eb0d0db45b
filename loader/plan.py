"""The plan of a load, for all of its processes: server, release, regions. A job's tasks read it from a JSON file."""

from dataclasses import dataclass, field

from predictions.formats.names import release_table
from predictions.formats.prediction_line import COLUMNS
from predictions.formats.row_key import key_range
from predictions.hbase.server import Server


@dataclass(frozen=True)
class Plan:
    """One load of one release.

    Args:
        server: the Thrift server.
        name: the name of the predictions.
        release: the release to load.
        load: the load that the checkpoints belong to; a new table begins a new one.
        points: the split points between the part files.
        rate: rows that one process may write per second; None: no limit.
        columns: the columns of the release's prediction lines.
    """

    server: Server
    name: str
    release: str
    load: str
    points: list[str]
    rate: float | None = None
    columns: list[str] = field(default_factory=lambda: list(COLUMNS))

    @property
    def table(self) -> str:
        """The release's table."""
        return release_table(self.name, self.release)

    @property
    def parts(self) -> int:
        """The number of part files."""
        return len(self.points) + 1

    def range(self, part: int) -> tuple[bytes, bytes]:
        """Return a part's range of row keys: its first key and that of the next part, empty at the two ends."""
        return key_range(self.points, part)
