"""`predictions init`."""

from pathlib import Path

import click

from predictions.progress import say
from predictions.settings import FILE_NAME
from predictions.stages.init import write_settings


@click.command("init")
@click.argument("url")
@click.argument("table")
@click.option("--id", "record_id", required=True, metavar="COLUMN", help="The column with the unique record ID.")
@click.option("--label", required=True, metavar="COLUMN", help="The column that is to be predicted.")
@click.option("--name", metavar="NAME", help="Of the predictions; by default the table's.")
def command(url: str, table: str, record_id: str, label: str, name: str | None) -> None:
    """Write predictions.toml for TABLE of the database URL, all other columns as features.

    The URL is sqlite:///PATH, postgresql://USER@HOST:PORT/DATABASE, or one of SQLAlchemy.
    """
    say(f"wrote {write_settings(Path(FILE_NAME), url, table, record_id, label, name or table)}; look through it")
