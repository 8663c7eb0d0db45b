"""What every process of a load has to know: the server, the release, its regions; a JSON file for a job's tasks."""

from dataclasses import dataclass

from predictions.formats.names import release_table
from predictions.formats.row_key import key_range
from predictions.hbase.server import Server


@dataclass(frozen=True)
class Plan:
    """One load of one release.

    Args:
        server: the Thrift server.
        name: of the predictions.
        release: whose prediction lines are loaded.
        load: what the checkpoints belong to: a table that was made anew has others.
        points: the split points, between which the part files lie.
        rate: rows that one process may write a second; None for as many as it can.
    """

    server: Server
    name: str
    release: str
    load: str
    points: list[str]
    rate: float | None = None

    @property
    def table(self) -> str:
        """The release's table."""
        return release_table(self.name, self.release)

    @property
    def parts(self) -> int:
        """How many part files there are."""
        return len(self.points) + 1

    def range(self, part: int) -> tuple[bytes, bytes]:
        """Return the row keys between which a part lies: its first one and that of the next, empty at the ends."""
        return key_range(self.points, part)
