"""`predictions pack`."""

from pathlib import Path

import click

from predictions.cli.session import Session
from predictions.jobs.bundle import TASK_LIBRARIES, pack_environment, task_libraries
from predictions.progress import say


@click.command("pack")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("wheels", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.pass_obj
def command(session: Session, file: Path, wheels: tuple[Path, ...]) -> None:
    """Pack the libraries that a job's tasks need.

    Writes them to FILE (.tar.gz); set hadoop.environment to its path. If the newest release's model is compiled, tasks
    need numpy and xxhash alone; otherwise, and without a release, pandas, scikit-learn and skops are packed as well,
    with LightGBM or XGBoost if the model is theirs. WHEELS are packed too: own code that is compiled. Pure Python
    belongs into model.packages.
    """
    libraries = TASK_LIBRARIES if wheels else task_libraries(session.storage)
    pack_environment(file, libraries, wheels)
    say(f"wrote {file}, with {', '.join([*libraries, *(wheel.name for wheel in wheels)])} and what they require")
