"""What HBase knows of the releases: table NAME, family `r`.

Row `release:ID` has `r:manifest`, `r:state` (building, loaded; claimed by a check that there is none yet) and `r:load`,
to which the checkpoints of its load belong (`loader.checkpoints`).
Row `pointer` has one cell, `r:pointer`: JSON with a serial number, the current release, and those that were current
before it, oldest first. It changes only by a check-and-put against the bytes that were read, so of two writers at
once one is told.
"""

import json
import uuid
from dataclasses import dataclass, field
from typing import Any

from loader.connection import Connection
from predictions.errors import InputError, RefusedError

FAMILY = "r"
BUILDING, LOADED = "building", "loaded"

_POINTER_ROW, _POINTER = b"pointer", b"r:pointer"
_MANIFEST, _STATE, _LOAD = b"r:manifest", b"r:state", b"r:load"


@dataclass(frozen=True)
class Pointer:
    """Which release is served, and which ones were before it (oldest first)."""

    serial: int = 0
    current: str | None = None
    history: list[str] = field(default_factory=list)


class Releases:
    """The releases of one name, through one connection."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name

    @property
    def is_there(self) -> bool:
        """Whether anything was ever loaded under this name."""
        return self._name.encode() in self._connection.tables()

    def make_table(self) -> None:
        """Make the table NAME, unless it is there."""
        if not self.is_there:
            self._connection.create_table(self._name, FAMILY)

    def claim(self, release: str) -> None:
        """Enter a release as being built; one that is being built already goes on."""
        # Asked twice, the second time changes nothing.
        self._connection.check_and_put(self._name, _row(release), _STATE, None, BUILDING.encode(), repeat=True)

    def state(self, release: str) -> str | None:
        """Return a release's state, None where it was never loaded."""
        value = self._value(_row(release), _STATE) if self.is_there else None
        return value.decode() if value else None

    def load_id(self, release: str) -> str | None:
        """Return the ID of the load that the release's table was made for, None where there is none."""
        value = self._value(_row(release), _LOAD)
        return value.decode() if value else None

    def start_load(self, release: str) -> str:
        """Give the release's table, which is to be made now, a new load ID and return it."""
        load_id = uuid.uuid4().hex[:12]
        self._connection.put(self._name, _row(release), {_LOAD: load_id.encode()})
        return load_id

    def finish(self, release: str, manifest: dict[str, Any]) -> None:
        """Enter a release as loaded, with its manifest."""
        cells = {_MANIFEST: json.dumps(manifest).encode(), _STATE: LOADED.encode()}
        self._connection.put(self._name, _row(release), cells)

    def manifest(self, release: str) -> dict[str, Any]:
        """Return the manifest of a release; InputError where it is not loaded."""
        value = self._value(_row(release), _MANIFEST)
        if value is None:
            raise InputError(f"release {release} is not loaded; `predictions load` loads it")
        return json.loads(value)

    def pointer(self) -> Pointer:
        """Return the pointer; an empty one where no release was ever made current."""
        return self._read()[1]

    def activate(self, release: str) -> Pointer:
        """Make a loaded release the current one, in one write.

        Raises:
            InputError: the release is not loaded.
            RefusedError: another activation came between.
        """
        state = self.state(release)
        if state != LOADED:
            raise InputError(f"release {release} is {state or 'not loaded'}; `predictions load` loads it")
        read, old = self._read()
        if old.current == release:
            return old
        history = [*old.history, old.current] if old.current else old.history
        new = Pointer(old.serial + 1, release, history)
        value = json.dumps(vars(new)).encode()
        if not self._connection.check_and_put(self._name, _POINTER_ROW, _POINTER, read, value):
            raise RefusedError(f"another release became current just now; look at it before {release} replaces it")
        return new

    def _read(self) -> tuple[bytes | None, Pointer]:
        value = self._value(_POINTER_ROW, _POINTER)
        return value, Pointer(**json.loads(value)) if value else Pointer()

    def _value(self, row: bytes, column: bytes) -> bytes | None:
        cell = self._connection.row(self._name, row, [column]).get(column)
        return cell.value if cell else None


def _row(release: str) -> bytes:
    return b"release:" + release.encode()
