"""Checkpoints: how much of each part is loaded, kept in HBase, so that a load can go on from any machine.

Table NAME, family `r`, row `load:RELEASE:LOAD:PART`:

- `r:checkpoint` is JSON: `offset` (bytes of the part file whose rows HBase has acknowledged), `rows` and `id_digest` of
  the rows that it took, how many it `rejected`, and whether the part is `complete`.
- `r:rejected:OFFSET`, one for each batch with refused rows, has the dead letters: a line `record ID TAB reason`,
  escaped like a record line, for each of these rows.

Both are written in one put, after the batch. LOAD is made with the release's table, so a new table has no checkpoints.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import NamedTuple

from loader.plan import Plan
from predictions.formats.id_digest import NO_IDS, IdDigest
from predictions.formats.record_line import SEPARATOR, escape, split_lines, unescape, write_rows
from predictions.hbase.connection import Connection

_FAMILY = b"r"
_CHECKPOINT = b"r:checkpoint"
_REJECTED = b"r:rejected:%015d"


@dataclass(frozen=True)
class Checkpoint:
    """How much of a part is loaded.

    Args:
        offset: bytes of the part file, unpacked, whose rows HBase has acknowledged.
        rows: rows that were loaded from these bytes.
        id_digest: ID digest of these rows.
        rejected: rows that HBase rejected.
        complete: whether the whole part is loaded.
    """

    offset: int = 0
    rows: int = 0
    id_digest: IdDigest = NO_IDS
    rejected: int = 0
    complete: bool = False


class Rejected(NamedTuple):
    """A dead letter: the record ID, escaped as in the line, and why HBase rejected its row."""

    record_id: bytes
    reason: str


def forget_loads(connection: Connection, name: str, release: str) -> None:
    """Remove the checkpoints of every load of a release, also those of part files that were replaced."""
    prefix = f"load:{release}".encode()
    for page in connection.keys(name, prefix + b":", prefix + b";"):
        for key in page:
            connection.delete_row(name, key)


class Checkpoints:
    """The checkpoints of one load, through one connection."""

    def __init__(self, connection: Connection, plan: Plan) -> None:
        self._connection = connection
        self._plan = plan
        self._last_time = 0

    def read(self, part: int) -> Checkpoint:
        """Return a part's checkpoint; all zeros if the part was not begun."""
        cell = self._connection.row(self._plan.name, self._key(part), [_CHECKPOINT]).get(_CHECKPOINT)
        if not cell:
            return Checkpoint()
        self._last_time = cell.timestamp  # perhaps another machine's, whose clock is ahead of this one's
        return _read(cell.value)

    def write(self, part: int, checkpoint: Checkpoint, rejected: Iterable[Rejected] = ()) -> None:
        """Write a part's checkpoint, and the dead letters of its last batch."""
        cells = {_CHECKPOINT: json.dumps(asdict(checkpoint)).encode()}
        lines = [(letter.record_id, escape(letter.reason.encode())) for letter in rejected]
        if lines:
            cells[_REJECTED % checkpoint.offset] = write_rows(lines)
        # With an explicit timestamp: a put that timed out may arrive late, and must not replace a later checkpoint.
        self._last_time = max(self._last_time + 1, time.time_ns() // 1_000_000)
        self._connection.put(self._plan.name, self._key(part), cells, self._last_time)

    def read_all(self) -> dict[int, Checkpoint]:
        """Return each part's checkpoint, by the part's number."""
        checkpoints = {part: Checkpoint() for part in range(self._plan.parts)}
        for page in self._connection.scan(self._plan.name, self._key(0), self._key(self._plan.parts), [_CHECKPOINT]):
            for row in page:
                part = int(row.key.rpartition(b":")[2])
                checkpoints[part] = _read(row.cells[_CHECKPOINT].value)
        return checkpoints

    def rejected(self, part: int) -> list[Rejected]:
        """Return a part's dead letters in the order of their rows."""
        cells = self._connection.row(self._plan.name, self._key(part), [_FAMILY])
        blocks = [cells[column].value for column in sorted(cells) if column != _CHECKPOINT]
        pairs = [line.split(SEPARATOR) for block in blocks for line in split_lines(block)]
        return [Rejected(record_id, unescape(reason).decode()) for record_id, reason in pairs]

    def remove(self, part: int) -> None:
        """Remove a part's checkpoint, so that it is loaded from its start."""
        self._connection.delete_row(self._plan.name, self._key(part))

    def remove_all(self) -> None:
        """Remove the checkpoints of every load of the release, also those of part files that were replaced."""
        forget_loads(self._connection, self._plan.name, self._plan.release)

    def _key(self, part: int) -> bytes:
        return f"load:{self._plan.release}:{self._plan.load}:{part:05d}".encode()


def _read(value: bytes) -> Checkpoint:
    values = json.loads(value)
    return Checkpoint(**values | {"id_digest": IdDigest(values["id_digest"])})
