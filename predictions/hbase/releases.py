"""Keep the releases and the pointer in HBase: table NAME, family `r`.

Row `release:ID` has `r:manifest`, `r:state` (building, loaded, refused, dropped; a release is claimed by a check that
it has no state yet), `r:gates` (the verdict of the gates, in JSON), and `r:load`, the ID of the load to which the
checkpoints belong (`loader.checkpoints`).
Row `pointer` has one cell, `r:pointer`: JSON with a serial number, the served release (`current`), the releases that
were served before it, and the releases that were rolled back, each list oldest first. It changes only by a
check-and-put against the bytes that were read, so of two writers at once, one fails.
"""

import json
import uuid
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

from predictions.errors import InputError, RefusedError, ServiceError
from predictions.formats import document
from predictions.formats.manifest import Manifest
from predictions.hbase.connection import Connection, RejectedError, Sent
from predictions.hbase.rows import Row

FAMILY = "r"
BUILDING, LOADED, REFUSED, DROPPED = "building", "loaded", "refused", "dropped"

CURRENT, PREVIOUS, ROLLED_BACK = "current", "previous", "rolled back"
NOT_LOADED = "not loaded"

_POINTER_ROW, _POINTER = b"pointer", b"r:pointer"
_MANIFEST, _STATE, _LOAD, _GATES = b"r:manifest", b"r:state", b"r:load", b"r:gates"
_OVERTAKEN = "another release was activated just now; check it before {} replaces it"


@dataclass(frozen=True)
class Pointer:
    """The served release, the releases served before it, and those that were rolled back (oldest first)."""

    serial: int = 0
    current: str | None = None
    history: list[str] = field(default_factory=list)
    rolled_back: list[str] = field(default_factory=list)

    @property
    def previous(self) -> str | None:
        """The release that a rollback would serve again."""
        return self.history[-1] if self.history else None

    def after(self, release: str) -> "Pointer":
        """Return the pointer after the activation of a release."""
        history = [*self.history, self.current] if self.current else self.history
        return Pointer(self.serial + 1, release, history, [other for other in self.rolled_back if other != release])

    def back(self) -> "Pointer":
        """Return the pointer after a rollback; there must be a previous release."""
        assert self.current
        return Pointer(self.serial + 1, self.history[-1], self.history[:-1], [*self.rolled_back, self.current])


class Known(NamedTuple):
    """A release in HBase: its state, its manifest once it is loaded, and the gates' verdict once they have run."""

    state: str
    manifest: Manifest | None
    verdict: dict[str, Any] | None


class Listed(NamedTuple):
    """A release, as `predictions releases` lists it.

    Args:
        release: release ID.
        role: `current` (served), `previous` (a rollback serves it again), `rolled back`, or empty.
        state: state in HBase; `not loaded` if HBase has no entry for the release.
        rows: number of predictions; None if the release is not scored.
        failed: number of these whose record could not be scored.
        estimator: class of the model; of several labels, the different classes.
        model: the first digits of the model's SHA-256; of several labels, one for each.
        refused_by: the gates that the release failed; None if the gates did not run.
        forced: the reason for which it was activated despite that.
        bytes: size of its files in the storage.
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
    def table_exists(self) -> bool:
        """Whether the table NAME exists: the first load or run under this name makes it."""
        return self._name.encode() in self._connection.tables()

    def make_table(self) -> None:
        """Make the table NAME, unless it exists."""
        if not self.table_exists:
            self._connection.create_table(self._name, FAMILY)

    def claim(self, release: str) -> None:
        """Enter a release as being built, unless it has a state already."""
        # Safe to repeat: a second attempt changes nothing.
        self._connection.check_and_put(self._name, _row(release), _STATE, None, BUILDING.encode(), repeat=True)

    def state(self, release: str) -> str | None:
        """Return a release's state; None if it was never loaded."""
        value = self._value(_row(release), _STATE) if self.table_exists else None
        return value.decode() if value else None

    def load_id(self, release: str) -> str | None:
        """Return the ID of the load for which the release's table was made; None if there is none."""
        value = self._value(_row(release), _LOAD)
        return value.decode() if value else None

    def start_load(self, release: str) -> str:
        """Store a new load ID for the release's table, which the caller makes next, and return it."""
        load_id = uuid.uuid4().hex[:12]
        self._connection.put(self._name, _row(release), {_LOAD: load_id.encode()})
        return load_id

    def finish(self, release: str, manifest: Manifest) -> None:
        """Enter a release as loaded, with its manifest."""
        cells = {_MANIFEST: document.to_cell(manifest.done), _STATE: LOADED.encode()}
        self._connection.put(self._name, _row(release), cells)

    def manifest(self, release: str) -> Manifest:
        """Return the manifest of a release; raise InputError if it is not loaded."""
        value = self._value(_row(release), _MANIFEST)
        if value is None:
            raise InputError(f"release {release} is not loaded; load it with `predictions load`")
        return self._manifest(_row(release), value)

    def pointer(self) -> Pointer:
        """Return the pointer; an empty one if no release was ever activated."""
        return self.receive_pointer(self.send_pointer())

    def send_pointer(self) -> Sent:
        """Send the request for the pointer (see `Connection.send_rows`)."""
        return self._connection.send_rows(self._name, [_POINTER_ROW], [_POINTER])

    def receive_pointer(self, sent: Sent) -> Pointer:
        """Wait for the pointer that `send_pointer` requested, and return it."""
        try:
            rows = self._connection.receive(sent)
        except RejectedError:
            if self.table_exists:
                raise
            return Pointer()  # nothing was ever loaded
        return _pointer(rows[0].cells[_POINTER].value if rows else None)

    def known(self) -> dict[str, Known]:
        """Return the state, manifest and verdict of every release in HBase by ID, oldest first."""
        if not self.table_exists:
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
        """Store the gates' verdict on a release and its state, `loaded` or `refused`."""
        self._connection.put(self._name, _row(release), {_STATE: state.encode(), _GATES: document.to_cell(verdict)})

    def drop(self, release: str) -> None:
        """Enter a release as dropped; the caller drops its table afterwards."""
        self._connection.put(self._name, _row(release), {_STATE: DROPPED.encode()})

    def activate(self, release: str, force: bool = False, serial: int | None = None) -> Pointer:
        """Serve a loaded release from now on, by one write to the pointer.

        Args:
            release: release ID.
            force: activate it even if it was rolled back.
            serial: serial number of the pointer at the time of the comparison; by default that of the pointer now.

        Raises:
            InputError: the release is not loaded.
            RefusedError: it was rolled back, or the pointer has changed in the meantime.
        """
        self.require(release, LOADED)
        value, old = self._read()
        if old.current == release:
            return old
        if serial not in (None, old.serial):
            raise RefusedError(_OVERTAKEN.format(release))
        if release in old.rolled_back and not force:
            raise RefusedError(f"release {release} was rolled back; pass --force REASON to activate it again")
        return self._switch(value, old.after(release))

    def rollback(self) -> Pointer:
        """Serve the previous release again, by one write to the pointer.

        Raises:
            InputError: there is no previous release, or it is not loaded any more.
            RefusedError: the pointer has changed in the meantime.
        """
        value, old = self._read() if self.table_exists else (None, Pointer())
        if not old.previous:
            reason = f"no release was served before {old.current}" if old.current else "no release was ever served"
            raise InputError(f"{reason}: nothing to go back to")
        self.require(old.previous, LOADED)
        return self._switch(value, old.back())

    def require(self, release: str, *states: str) -> None:
        """Raise InputError unless a release has one of these states."""
        state = self.state(release)
        if state not in states:
            if state == DROPPED:
                raise InputError(f"release {release} was removed; start a new release")
            raise InputError(f"release {release} is {NOT_LOADED}; load it with `predictions load`")

    def _switch(self, old_value: bytes | None, new: Pointer) -> Pointer:
        """Replace the pointer if its cell still has the old value."""
        value = document.to_cell(new)
        try:
            switched = self._connection.check_and_put(self._name, _POINTER_ROW, _POINTER, old_value, value)
        except RejectedError:
            raise
        except ServiceError:
            if self._read()[0] != value:  # the answer was lost, but the cell shows whether the write succeeded
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


def listed(release: str, pointer: Pointer, entry: Known, size: int) -> Listed:
    """Return a release in the form in which it is listed.

    Args:
        release: release ID.
        pointer: the pointer, which gives the role.
        entry: the release's entry in HBase.
        size: size of its files in bytes.
    """
    scored = entry.manifest.scored if entry.manifest else None
    models = [predicted.model for predicted in entry.manifest.predicted] if entry.manifest else []
    verdict = entry.verdict or {}
    gates = verdict.get("gates")
    return Listed(
        release,
        role(pointer, release),
        entry.state,
        scored.rows if scored else None,
        scored.failed if scored else None,
        ", ".join(dict.fromkeys(model.estimator for model in models)) or None,
        ", ".join(model.sha256[:8] for model in models) or None,
        None if gates is None else list(dict.fromkeys(gate["name"] for gate in gates if not gate["passed"])),
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
