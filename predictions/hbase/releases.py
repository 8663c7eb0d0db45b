"""What HBase knows of the releases: table NAME, family `r`.

Row `release:ID` has `r:manifest`, `r:state` (building, loaded, refused, dropped; claimed by a check that there is none
yet), `r:gates` (what the gates said, in JSON), and `r:load`, to which the checkpoints of its load belong
(`loader.checkpoints`).
Row `pointer` has one cell, `r:pointer`: JSON with a serial number, the current release, those that were current before
it, and those that were rolled back from, each oldest first. It changes only by a check-and-put against the bytes that
were read, so of two writers at once one is told.
"""

import json
import uuid
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

from predictions.errors import InputError, RefusedError, ServiceError
from predictions.formats import document
from predictions.formats.manifest import Manifest
from predictions.hbase.connection import Connection, RejectedError, Row, Sent

FAMILY = "r"
BUILDING, LOADED, REFUSED, DROPPED = "building", "loaded", "refused", "dropped"

CURRENT, PREVIOUS, ROLLED_BACK = "current", "previous", "rolled back"
NOT_LOADED = "not loaded"

_POINTER_ROW, _POINTER = b"pointer", b"r:pointer"
_MANIFEST, _STATE, _LOAD, _GATES = b"r:manifest", b"r:state", b"r:load", b"r:gates"
_OVERTAKEN = "another release became current just now; look at it before {} replaces it"


@dataclass(frozen=True)
class Pointer:
    """Which release is served, which ones were before it, and which were rolled back from (oldest first)."""

    serial: int = 0
    current: str | None = None
    history: list[str] = field(default_factory=list)
    rolled_back: list[str] = field(default_factory=list)

    @property
    def previous(self) -> str | None:
        """The release that a rollback makes current again."""
        return self.history[-1] if self.history else None

    def after(self, release: str) -> "Pointer":
        """Return the pointer once a release has become the current one."""
        history = [*self.history, self.current] if self.current else self.history
        return Pointer(self.serial + 1, release, history, [other for other in self.rolled_back if other != release])

    def back(self) -> "Pointer":
        """Return the pointer once the release before the current one is current again; there must be one."""
        assert self.current
        return Pointer(self.serial + 1, self.history[-1], self.history[:-1], [*self.rolled_back, self.current])


class Known(NamedTuple):
    """A release whose load was begun: its state, its manifest once it is loaded, what the gates said once asked."""

    state: str
    manifest: Manifest | None
    verdict: dict[str, Any] | None


class Listed(NamedTuple):
    """A release.

    Args:
        release: its ID.
        role: `current`, `previous` (where a rollback goes), `rolled back` or none.
        state: as in HBase; `not loaded` where HBase knows nothing of it.
        rows: predictions; None where it is not scored.
        failed: records of these that could not be scored.
        estimator: the model's class.
        model: the first digits of the model's SHA-256.
        refused_by: the gates that it did not pass; None where they were never asked.
        forced: why it became current all the same.
        bytes: of its files in the storage.
    """

    release: str
    role: str
    state: str
    rows: int | None
    failed: int | None
    estimator: str | None
    model: str | None
    refused_by: list[str] | None
    forced: str | None
    bytes: int


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

    def finish(self, release: str, manifest: Manifest) -> None:
        """Enter a release as loaded, with its manifest."""
        cells = {_MANIFEST: document.to_cell(manifest.done), _STATE: LOADED.encode()}
        self._connection.put(self._name, _row(release), cells)

    def manifest(self, release: str) -> Manifest:
        """Return the manifest of a release; InputError where it is not loaded."""
        value = self._value(_row(release), _MANIFEST)
        if value is None:
            raise InputError(f"release {release} is not loaded; `predictions load` loads it")
        return self._manifest(_row(release), value)

    def pointer(self) -> Pointer:
        """Return the pointer; an empty one where no release was ever made current, or loaded."""
        return self.receive_pointer(self.send_pointer())

    def send_pointer(self) -> Sent:
        """Send the request for the pointer (see `Connection.send_rows`)."""
        return self._connection.send_rows(self._name, [_POINTER_ROW], [_POINTER])

    def receive_pointer(self, sent: Sent) -> Pointer:
        """Return the pointer that `send_pointer` has asked for."""
        try:
            rows = self._connection.receive(sent)
        except RejectedError:
            if self.is_there:
                raise
            return Pointer()  # nothing was ever loaded
        return _pointer(rows[0].cells[_POINTER].value if rows else None)

    def known(self) -> dict[str, Known]:
        """Return what is known of every release that was ever loaded here, oldest first."""
        if not self.is_there:
            return {}
        rows = chain.from_iterable(self._connection.scan(self._name, _row(""), _row("~"), [_STATE, _MANIFEST, _GATES]))
        return {row.key.decode().partition(":")[2]: self._known(row) for row in rows if _STATE in row.cells}

    def _known(self, row: Row) -> Known:
        manifest, gates = (row.cells.get(column) for column in (_MANIFEST, _GATES))
        return Known(
            row.cells[_STATE].value.decode(),
            self._manifest(row.key, manifest.value) if manifest else None,
            json.loads(gates.value) if gates else None,
        )

    def _manifest(self, row: bytes, value: bytes) -> Manifest:
        return document.read(Manifest, value, f"row {row.decode()} of table {self._name}")

    def judge(self, release: str, state: str, verdict: dict[str, Any]) -> None:
        """Keep what the gates said of a release, which is `loaded` or `refused` then."""
        self._connection.put(self._name, _row(release), {_STATE: state.encode(), _GATES: document.to_cell(verdict)})

    def drop(self, release: str) -> None:
        """Enter a release as dropped, before its table is."""
        self._connection.put(self._name, _row(release), {_STATE: DROPPED.encode()})

    def activate(self, release: str, force: bool = False, serial: int | None = None) -> Pointer:
        """Make a loaded release the current one, in one write.

        Args:
            release: its ID.
            force: make it current though it was rolled back from.
            serial: of the pointer that the release was compared with; by default that which is there now.

        Raises:
            InputError: the release is not loaded.
            RefusedError: it was rolled back from, or another activation came between.
        """
        self.require(release, LOADED)
        read, old = self._read()
        if old.current == release:
            return old
        if serial not in (None, old.serial):
            raise RefusedError(_OVERTAKEN.format(release))
        if release in old.rolled_back and not force:
            raise RefusedError(f"release {release} was rolled back from; --force REASON makes it current all the same")
        return self._switch(read, old.after(release))

    def rollback(self) -> Pointer:
        """Make the release current again that was before the current one, in one write.

        Raises:
            InputError: there is none, or it is not loaded any more.
            RefusedError: another activation came between.
        """
        read, old = self._read() if self.is_there else (None, Pointer())
        if not old.previous:
            raise InputError(f"no release was current before {old.current or 'one ever was'}: nothing to go back to")
        self.require(old.previous, LOADED)
        return self._switch(read, old.back())

    def require(self, release: str, *states: str) -> None:
        """Raise InputError unless a release is in one of these states."""
        state = self.state(release)
        if state not in states:
            raise InputError(f"release {release} is {state or 'not loaded'}; `predictions load` loads it")

    def _switch(self, read: bytes | None, new: Pointer) -> Pointer:
        """Write a pointer in the place of the one that was read."""
        value = document.to_cell(new)
        try:
            switched = self._connection.check_and_put(self._name, _POINTER_ROW, _POINTER, read, value)
        except RejectedError:
            raise
        except ServiceError:
            if self._read()[0] != value:  # the answer was lost: whether it was done is seen
                raise
            switched = True
        if not switched:
            raise RefusedError(_OVERTAKEN.format(new.current))
        return new

    def _read(self) -> tuple[bytes | None, Pointer]:
        value = self._value(_POINTER_ROW, _POINTER)
        return value, _pointer(value)

    def _value(self, row: bytes, column: bytes) -> bytes | None:
        cell = self._connection.row(self._name, row, [column]).get(column)
        return cell.value if cell else None


def listed(release: str, pointer: Pointer, known: Known, size: int) -> Listed:
    """Return a release as it is listed.

    Args:
        release: its ID.
        pointer: says what its role is.
        known: its state, its manifest if there is one, what the gates said if they were asked.
        size: bytes of its files.
    """
    scored, model = (known.manifest.scored, known.manifest.model) if known.manifest else (None, None)
    verdict = known.verdict or {}
    gates = verdict.get("gates")
    return Listed(
        release,
        role(pointer, release),
        known.state,
        scored.rows if scored else None,
        scored.failed if scored else None,
        model.estimator if model else None,
        model.sha256[:8] if model else None,
        None if gates is None else [gate["name"] for gate in gates if not gate["passed"]],
        verdict.get("forced"),
        size,
    )


def role(pointer: Pointer, release: str) -> str:
    """Return a release's role, as in `Listed`."""
    if release == pointer.current:
        return CURRENT
    if release in pointer.rolled_back:
        return ROLLED_BACK
    return PREVIOUS if release == pointer.previous else ""


def _pointer(value: bytes | None) -> Pointer:
    return document.read(Pointer, value, _POINTER_ROW.decode()) if value else Pointer()


def _row(release: str) -> bytes:
    return b"release:" + release.encode()
