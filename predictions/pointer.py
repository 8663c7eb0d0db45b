"""What HBase knows of the releases: table NAME, family `r`.

Row `release:ID` has `r:manifest` and `r:state` (building, loaded); it is claimed by a check that there is none yet.
Row `pointer` has one cell, `r:pointer`: JSON with a serial number, the current release, and those that were current
before it, oldest first. It changes only by a check-and-put against the bytes that were read, so of two writers at
once one is told.
"""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import happybase
from Hbase_thrift import AlreadyExists, Mutation

from predictions.errors import InputError, RefusedError

FAMILY = "r"
BUILDING, LOADED = "building", "loaded"

_POINTER_ROW, _POINTER = b"pointer", b"r:pointer"
_MANIFEST, _STATE = b"r:manifest", b"r:state"


@dataclass(frozen=True)
class Pointer:
    """Which release is served, and which ones were before it (oldest first)."""

    serial: int = 0
    current: str | None = None
    history: list[str] = field(default_factory=list)


def release_table(name: str, release: str) -> str:
    """Return the name of the table that holds a release's predictions."""
    return f"{name}.{release}"


class Releases:
    """The releases of one name, through one connection."""

    def __init__(self, connection: happybase.Connection, name: str) -> None:
        self._connection = connection
        self._name = name.encode()
        self._table = connection.table(name)

    def make_table(self) -> None:
        """Make the table NAME, unless it is there."""
        if self._name not in self._connection.tables():
            with suppress(AlreadyExists):  # another run may be faster
                self._connection.create_table(self._name, {FAMILY: {}})

    def claim(self, release: str) -> None:
        """Enter a release as being built; one that is being built already goes on."""
        self._check_and_put(_row(release), _STATE, None, BUILDING.encode())

    def state(self, release: str) -> str | None:
        """Return a release's state, None where it was never loaded."""
        if self._name not in self._connection.tables():
            return None
        value = self._table.row(_row(release), columns=[_STATE]).get(_STATE)
        return value.decode() if value else None

    def finish(self, release: str, manifest: dict[str, Any]) -> None:
        """Enter a release as loaded, with its manifest."""
        self._table.put(_row(release), {_MANIFEST: json.dumps(manifest).encode(), _STATE: LOADED.encode()})

    def manifest(self, release: str) -> dict[str, Any]:
        """Return the manifest of a loaded release."""
        return json.loads(self._table.row(_row(release), columns=[_MANIFEST])[_MANIFEST])

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
        if not self._check_and_put(_POINTER_ROW, _POINTER, read, json.dumps(vars(new)).encode()):
            raise RefusedError(f"another release became current just now; look at it before {release} replaces it")
        return new

    def _read(self) -> tuple[bytes | None, Pointer]:
        value = self._table.row(_POINTER_ROW, columns=[_POINTER]).get(_POINTER)
        return value, Pointer(**json.loads(value)) if value else Pointer()

    def _check_and_put(self, row: bytes, column: bytes, expected: bytes | None, value: bytes) -> bool:
        # HappyBase does not wrap this call of Thrift 1; None as the expected value means that there is no cell.
        put = Mutation(column=column, value=value)
        return self._connection.client.checkAndPut(self._name, row, column, expected, put, {})


def _row(release: str) -> bytes:
    return b"release:" + release.encode()
