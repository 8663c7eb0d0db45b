"""`predictions releases`: the table of releases for an operator, and the removal of old ones."""

import json
import sys
from datetime import UTC, datetime, timedelta

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from predictions.cli.session import Session, json_option
from predictions.formats.names import release_table, release_time
from predictions.hbase.connection import Connection
from predictions.hbase.releases import CURRENT, ROLLED_BACK, Listed
from predictions.progress import say
from predictions.settings import Settings
from predictions.stages.releases import leftovers, list_releases, remove
from predictions.storage import Storage


@click.command("releases")
@json_option("One JSON object a line.")
@click.option("--clean", is_flag=True, help="Remove what has had its time ([retention]), and what crashes left behind.")
@click.pass_obj
def command(session: Session, as_json: bool, clean: bool) -> None:
    """List the releases, the newest first."""
    if clean:
        _clean(session.settings, session.storage)
        return
    found = list_releases(session.settings, session.storage)
    if as_json:
        for release in found:
            click.echo(json.dumps(release._asdict()))
    else:
        _show(found)


def _clean(settings: Settings, storage: Storage) -> None:
    """Show what has had its time or was left behind, and remove it."""
    with Connection(settings.hbase.server(loading=True)) as connection:
        found = leftovers(settings, storage, connection)
        for leftover in found:
            table = [f"table {release_table(settings.name, leftover.release)}"] if leftover.table else []
            places = ", ".join([*table, *leftover.paths]) or "an entry in HBase"
            click.echo(f"{leftover.release}: {leftover.why}: {places}")
        if found and sys.stdin.isatty():
            click.confirm("Remove all of that?", abort=True)
        for leftover in remove(settings, storage, connection, found):
            is_release = leftover.known or leftover.table
            say(f"removed {leftover.release if is_release else ', '.join(leftover.paths)}")
    if not found:
        say("there is nothing to remove")


def _gates(listed: Listed) -> str:
    if listed.refused_by is None:
        return ""
    said = f"refused: {', '.join(listed.refused_by)}" if listed.refused_by else "passed"
    return f"{said}; forced: {listed.forced}" if listed.forced else said


def _show(releases: list[Listed]) -> None:
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
