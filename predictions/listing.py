"""The releases for an operator: what each holds, which one is served, and which one was."""

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from loader.connection import Connection
from predictions.pointer import Pointer, Releases
from predictions.release import release_time
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
        bytes: of its files in the storage.
    """

    release: str
    role: str
    state: str
    rows: int | None
    failed: int | None
    estimator: str | None
    model: str | None
    bytes: int


def list_releases(settings: Settings, storage: Storage) -> list[Listed]:
    """Return all releases that are in HBase or in the storage, the newest first.

    Raises:
        ServiceError: HBase or HDFS cannot be reached.
    """
    with Connection(settings.hbase.server()) as connection:
        known = Releases(connection, settings.name).known()
        pointer = Releases(connection, settings.name).pointer() if known else Pointer()
    stored = set(storage.releases())
    found = []
    for release in sorted(known.keys() | stored, reverse=True):
        state, manifest = known.get(release, (NOT_LOADED, None))
        if manifest is None:
            manifest = storage.release(release).manifest() if release in stored else {}
        size = storage.size(release) if release in stored else 0
        found.append(_listed(release, _role(pointer, release), state, manifest, size))
    return found


def _listed(release: str, role: str, state: str, manifest: dict[str, Any], size: int) -> Listed:
    scored, model = manifest.get("scored", {}), manifest.get("model", {})
    digest = model["sha256"][:8] if model else None
    return Listed(release, role, state, scored.get("rows"), scored.get("failed"), model.get("estimator"), digest, size)


def _role(pointer: Pointer, release: str) -> str:
    if release == pointer.current:
        return CURRENT
    if release in pointer.rolled_back:
        return ROLLED_BACK
    return PREVIOUS if release == pointer.previous else ""


def show(releases: list[Listed]) -> None:
    """Print the releases to stdout, as a table."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("release", "", "state", "age"):
        table.add_column(column)
    for column in ("rows", "failed", "MB"):
        table.add_column(column, justify="right")
    table.add_column("model", overflow="fold")
    now = datetime.now(UTC)
    for each in releases:
        age = timedelta(seconds=int((now - release_time(each.release)).total_seconds()))
        counts = ("" if count is None else f"{count:,}" for count in (each.rows, each.failed))
        model = f"{each.estimator.rpartition('.')[2]} {each.model}" if each.estimator else ""
        style = "bold green" if each.role == CURRENT else "red" if each.role == ROLLED_BACK else None
        row = (each.release, each.role, each.state, str(age), *counts, f"{each.bytes / 1e6:,.1f}", model)
        table.add_row(*row, style=style)
    Console(highlight=False).print(table)
