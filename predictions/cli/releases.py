"""`predictions releases`: list the releases, and remove old ones."""

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
@json_option("Print one JSON object per line.")
@click.option("--clean", is_flag=True, help="Remove releases beyond [retention], and what crashed runs left behind.")
@click.pass_obj
def command(session: Session, as_json: bool, clean: bool) -> None:
    """List the releases, or remove old ones.

    The newest release comes first. With --clean, you are asked to confirm if stdin is a terminal.
    """
    if clean:
        _clean(session.settings, session.storage)
        return
    releases = list_releases(session.settings, session.storage)
    if as_json:
        for release in releases:
            click.echo(json.dumps(release._asdict()))
    else:
        _show(releases)


def _clean(settings: Settings, storage: Storage) -> None:
    """Show the releases beyond retention and what crashed runs left, and remove them."""
    with Connection(settings.hbase.server(loading=True)) as connection:
        to_remove = leftovers(settings, storage, connection)
        for leftover in to_remove:
            table = [f"table {release_table(settings.name, leftover.release)}"] if leftover.table else []
            places = ", ".join([*table, *leftover.paths]) or "an entry in HBase"
            click.echo(f"{leftover.release}: {leftover.why}: {places}")
        if to_remove and sys.stdin.isatty():
            click.confirm("Remove all of these?", abort=True)
        for leftover in remove(settings, storage, connection, to_remove):
            is_release = leftover.known or leftover.table
            say(f"removed {leftover.release if is_release else ', '.join(leftover.paths)}")
    if not to_remove:
        say("nothing to remove")


def _gates(listed: Listed) -> str:
    if listed.refused_by is None:
        return ""
    verdict = f"refused: {', '.join(listed.refused_by)}" if listed.refused_by else "passed"
    return f"{verdict}; forced: {listed.forced}" if listed.forced else verdict


def _show(releases: list[Listed]) -> None:
    """Print the releases to stdout, as a table."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")  # fits 80 characters
    for column in ("release", "role", "state", "age"):
        table.add_column(column, no_wrap=True)  # release IDs are copied
    for column in ("rows", "failed", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("model", no_wrap=True)
    table.add_column("gates", overflow="fold")
    now = datetime.now(UTC)
    for listed in releases:
        age = timedelta(seconds=int((now - release_time(listed.release)).total_seconds()))
        counts = ("" if count is None else f"{count:,}" for count in (listed.rows, listed.failed))
        style = "bold green" if listed.role == CURRENT else "red" if listed.role == ROLLED_BACK else None
        row = (
            listed.release,
            listed.role,
            listed.state,
            str(age),
            *counts,
            f"{listed.bytes / 1e6:,.1f}",
            listed.model or "",
            _gates(listed),
        )
        table.add_row(*map(Text, row), style=style)
    Console(highlight=False).print(table)
