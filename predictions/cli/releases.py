"""`predictions releases`: the table of releases for an operator."""

from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.table import Table
from rich.text import Text

from predictions.formats.names import release_time
from predictions.hbase.releases import CURRENT, ROLLED_BACK, Listed


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
