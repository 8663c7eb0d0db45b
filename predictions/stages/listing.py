"""The releases for an operator: what each holds, which one is served, and which one was."""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from predictions.formats.names import release_time
from predictions.hbase.connection import Connection
from predictions.hbase.releases import Known, Pointer, Releases
from predictions.settings import Settings
from predictions.storage import Storage

CURRENT, PREVIOUS, ROLLED_BACK = "current", "previous", "rolled back"
NOT_LOADED = "not loaded"


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


def list_releases(settings: Settings, storage: Storage) -> list[Listed]:
    """Return all releases that are in HBase or in the storage, the newest first.

    Raises:
        ServiceError: HBase or HDFS cannot be reached.
    """
    with Connection(settings.hbase.server()) as connection:
        releases = Releases(connection, settings.name)
        known, pointer = releases.known(), releases.pointer()
    stored = set(storage.releases())
    found = []
    for release in sorted(known.keys() | stored, reverse=True):
        each = known.get(release, Known(NOT_LOADED, None, None))
        if each.manifest is None and release in stored:
            each = each._replace(manifest=storage.release(release).manifest())
        size = storage.size(release) if release in stored else 0
        found.append(listed(release, pointer, each, size))
    return found


def listed(release: str, pointer: Pointer, known: Known, size: int) -> Listed:
    """Return a release as it is listed.

    Args:
        release: its ID.
        pointer: says what its role is.
        known: its state, its manifest if there is one, what the gates said if they were asked.
        size: bytes of its files.
    """
    manifest, verdict = known.manifest or {}, known.verdict or {}
    scored, model, gates = manifest.get("scored", {}), manifest.get("model", {}), verdict.get("gates")
    return Listed(
        release,
        role(pointer, release),
        known.state,
        scored.get("rows"),
        scored.get("failed"),
        model.get("estimator"),
        model["sha256"][:8] if model else None,
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


def _gates(listed: Listed) -> str:
    if listed.refused_by is None:
        return ""
    said = f"refused: {', '.join(listed.refused_by)}" if listed.refused_by else "passed"
    return f"{said}; forced: {listed.forced}" if listed.forced else said


def show(releases: list[Listed]) -> None:
    """Print the releases to stdout, as a table."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")  # it fits 80 characters
    for column in ("release", "", "state", "age"):
        table.add_column(column, no_wrap=True)  # one copies the first
    for column in ("rows", "failed", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("model", no_wrap=True)
    table.add_column("gates", overflow="fold")
    now = datetime.now(UTC)
    for each in releases:
        age = timedelta(seconds=int((now - release_time(each.release)).total_seconds()))
        counts = ("" if count is None else f"{count:,}" for count in (each.rows, each.failed))
        style = "bold green" if each.role == CURRENT else "red" if each.role == ROLLED_BACK else None
        row = (
            each.release,
            each.role,
            each.state,
            str(age),
            *counts,
            f"{each.bytes / 1e6:,.1f}",
            each.model or "",
            _gates(each),
        )
        table.add_row(*map(Text, row), style=style)
    Console(highlight=False).print(table)
