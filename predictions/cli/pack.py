"""`predictions pack`."""

from pathlib import Path

import click

from predictions.jobs.bundle import pack_environment
from predictions.progress import say


@click.command("pack")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def command(file: Path) -> None:
    """Pack the libraries that a job's tasks need.

    Writes them to FILE (.tar.gz); set hadoop.environment to its path.
    """
    pack_environment(file)
    say(f"wrote {file}")
