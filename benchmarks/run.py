"""Measure the stages from exported records to served predictions, in one job on the embedded cluster.

The records are copies of the flights, exported to HDFS before. The times are those of the calls behind `predictions
score`, `load` and `activate`, divided where the progress of the job or the load shows that a step has ended:

- `hand in`: the job's files go to HDFS, `hadoop jar` starts and submits the job, YARN starts its application master and
  the first containers, up to the first progress of a map task;
- `map`, `reduce`: up to the end of the last map task, and of the last reduce task, which writes its region's HFile too;
- `end`: the output is committed, `hadoop jar` ends, and the counters are compared;
- `table`: the wait for the release's table, which `hbase` makes while the job runs; `check`: the HDFS checksum of each
  HFile is checked;
- `bulk load`: `hbase` hands the HFiles to the region server; `verify`: the files in HBase's folder are compared, and
  the ends of each region read;
- `serve`: the release is activated, and a row of its table is read.

`busy` is the share of the cores' time in which they worked, for any program; `stolen` is the share that the host of the
virtual machine gave to others. The rest of a stage is waiting. A second table has the seconds of a core that each kind
of process used.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click
import psutil

from benchmarks import processes
from benchmarks.flights import LABELS, SETTINGS, VAR, machine, release_on_hdfs, running_cluster
from predictions.cli import exits
from predictions.formats.names import release_table
from predictions.hbase.connection import Connection
from predictions.hbase.releases import Releases
from predictions.progress import say
from predictions.settings import Settings, load_settings
from predictions.stages.load import How, load, table_ahead
from predictions.stages.score import score
from predictions.storage import ReleaseFolder, Storage

HOST = "127.0.0.1"
MAPPED, REDUCED = 0.5, 1.0  # shares of a job's progress


class Step(NamedTuple):
    """The times of a stage."""

    seconds: float
    busy: float  # share of the cores' time, 0 to 1
    stolen: float

    @property
    def waiting(self) -> float:
        """Seconds that a core waited, on average over all cores."""
        return self.seconds * max(0.0, 1 - self.busy - self.stolen)


class Steps:
    """Measures stages, one after another."""

    def __init__(self) -> None:
        self.steps: dict[str, Step] = {}
        self._since = _now()

    def end(self, name: str) -> None:
        """End a stage, unless it has ended, and begin the next one."""
        if name not in self.steps:
            now = _now()
            seconds, idle, stolen, total = (after - before for before, after in zip(self._since, now, strict=True))
            shares = [round(1 - (idle + stolen) / total, 3), round(stolen / total, 3)] if total else [0.0, 0.0]
            self.steps[name] = Step(round(seconds, 2), *shares)
            self._since = now


def _now() -> tuple[float, ...]:
    """Return the clock, and the idle, the stolen and all seconds of the cores."""
    times = psutil.cpu_times()
    return time.monotonic(), times.idle + times.iowait, times.steal, sum(times[:8])


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--copies", type=click.IntRange(1), default=10, show_default=True, help="Copies of the flights, under new IDs."
)
@click.option("--labels", is_flag=True, help="Three labels in one pass, each with a model as large as the first.")
def main(as_json: bool, copies: int, labels: bool) -> None:
    """Measure the time from exported records to served predictions."""
    VAR.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run.", dir=VAR) as local, running_cluster() as cluster:
        file = LABELS if labels else SETTINGS
        settings = load_settings(file)
        thrift = settings.hbase.model_copy(update={"thrift": f"{HOST}:{cluster.port('thrift')}"})
        storage = Storage(f"webhdfs://{HOST}:{cluster.port('namenode_web')}/benchmarks", settings.name)
        settings = settings.model_copy(update={"hbase": thrift, "name": "benchmark_run"})
        with release_on_hdfs(settings, Path(local), storage, copies, file) as folder:
            with processes.ProcessTimes() as times:
                steps = _run(settings, folder)
            rows = folder.scored.rows
    total = sum(step.seconds for step in steps.values())
    result = {
        "rows": rows,
        "seconds": round(total, 2),
        "stages": {name: step._asdict() for name, step in steps.items()},
        "processes": times.seconds,
        "machine": machine(),
    }
    print(json.dumps(result) if as_json else f"{_table(result, steps)}\n\n{processes.table(times.seconds)}")


def _run(settings: Settings, folder: ReleaseFolder) -> dict[str, Step]:
    steps = Steps()

    def progress(share: float) -> None:
        if share > 0:
            steps.end("hand in")
        if share >= MAPPED:
            steps.end("map")
        if share >= REDUCED:
            steps.end("reduce")

    with table_ahead(settings, folder.release, say):
        score(settings, folder, "hadoop", progress)
        steps.end("end")

    @contextmanager
    def bar(label: str, _unit: str) -> Iterator[Callable[[float, float], None]]:
        if label == "load":
            steps.end("table")
            yield lambda done, total: steps.end("check") if done == total else None
            steps.end("bulk load")
        else:
            yield lambda _done, _total: None

    load(settings, folder, How(via="hfiles"), bar, say)
    steps.end("verify")
    with Connection(settings.hbase.server()) as connection:
        releases = Releases(connection, settings.name)
        releases.activate(folder.release)
        first = next(connection.scan(release_table(settings.name, folder.release), b"", b"", page_rows=1))
        if not first or releases.pointer().current != folder.release:
            raise click.ClickException("the release is not served")
    steps.end("serve")
    return steps.steps


def _table(result: dict, steps: dict[str, Step]) -> str:
    lines = [
        f"{result['rows']:,} flights, from exported records to served predictions: {result['seconds']:.1f} s",
        result["machine"],
        f"{'':12}{'seconds':>10}{'busy':>8}{'stolen':>8}{'waiting, s':>12}",
    ]
    for name, step in steps.items():
        lines.append(f"{name:12}{step.seconds:10.1f}{step.busy:8.0%}{step.stolen:8.0%}{step.waiting:12.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    exits.run(main, "run")
