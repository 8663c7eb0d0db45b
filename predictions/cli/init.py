"""`predictions init`."""

from pathlib import Path

import click

from predictions.progress import say
from predictions.settings import FILE_NAME
from predictions.stages.init import write_settings


@click.command("init")
@click.argument("url")
@click.argument("table")
@click.option("--id", "record_id", required=True, metavar="COLUMN", help="Column with the unique record ID.")
@click.option("--label", required=True, metavar="COLUMN", help="Column to predict.")
@click.option("--name", metavar="NAME", help="Name of the predictions; default: the table's name.")
def command(url: str, table: str, record_id: str, label: str, name: str | None) -> None:
    """Write a first predictions.toml.

    The file is for TABLE of the database URL, with all other columns as features. The URL is sqlite:///PATH,
    postgresql://USER@HOST:PORT/DATABASE, or one that SQLAlchemy knows.
    """
    say(f"wrote {write_settings(Path(FILE_NAME), url, table, record_id, label, name or table)}; review it before a run")
