"""`predictions pack`."""

from pathlib import Path

import click

from predictions.cli.session import Session
from predictions.jobs.bundle import pack_environment, task_libraries
from predictions.progress import say


@click.command("pack")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_obj
def command(session: Session, file: Path) -> None:
    """Pack the libraries that a job's tasks need.

    Writes them to FILE (.tar.gz); set hadoop.environment to its path. If the newest release's model is compiled, tasks
    need numpy and xxhash alone; otherwise, and without a release, pandas, scikit-learn and skops are packed as well,
    with LightGBM or XGBoost if the model is theirs.
    """
    libraries = task_libraries(session.storage)
    pack_environment(file, libraries)
    say(f"wrote {file}, with {', '.join(libraries)} and what they require")
