"""Load a release by puts, in processes of this machine or in a job, from each part's last checkpoint on."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

from loader.checkpoints import Checkpoint, Checkpoints
from loader.part import load_part
from loader.plan import Plan
from loader.proof import Proof
from predictions.errors import RefusedError, ServiceError
from predictions.formats.document import to_file
from predictions.formats.hfile.region_file import RegionFacts
from predictions.formats.names import part_name
from predictions.formats.record_line import escape, write_rows
from predictions.hbase.connection import Connection
from predictions.jobs.bundle import load_bundle
from predictions.jobs.streaming import Job, JobClient
from predictions.progress import Bar
from predictions.settings import Settings
from predictions.storage import ReleaseFolder
from predictions.workers import Report, run_tasks

REJECTED = "rejected.txt"
REJECTED_HEAD = b"record\treason\n"
BUNDLE = "loader.zip"
PLAN = "load.json"

_PROPERTIES = {
    # One task loads a whole part, whatever its size.
    "mapreduce.input.fileinputformat.split.minsize": str(1 << 62),
    # A speculative attempt would do no harm, but it would write the same rows again to a region that is slow already.
    "mapreduce.map.speculative": "false",
}


class PutLoad:
    """Load a release by puts.

    Args:
        settings: where HBase is, and how a job runs.
        folder: the release's folder.
        in_job: whether to load in a job instead of processes of this machine.
        processes: how many processes or tasks run at once; None: as many tasks as the cluster can run.

    Raises:
        InputError: for a job, the command `hadoop` is missing or the storage is not HDFS.
    """

    def __init__(self, settings: Settings, folder: ReleaseFolder, in_job: bool, processes: int | None) -> None:
        self._settings = settings
        self._folder = folder
        self._processes = processes
        self._client = JobClient(settings, folder) if in_job else None

    def load(
        self, connection: Connection, plan: Plan, rows: int, bar: Bar, say: Callable[[str], None]
    ) -> list[Checkpoint]:
        """Load the rest of each part, and return the parts' last checkpoints.

        Raises:
            InputError: a part file's lines belong to another region, or are not in order.
            RefusedError: HBase refuses rows; the others are loaded.
            ServiceError: HBase or YARN did not answer in time.
            InternalError: the job failed, or a process died.
        """
        checkpoints = Checkpoints(connection, plan)
        by_part = checkpoints.read_all()
        with bar("load", "rows") as progress:
            progress(_rows(by_part), rows)
            if self._client:
                self._run_job(self._client, plan, lambda _share: self._show_progress(plan, rows, progress))
                by_part = checkpoints.read_all()
            else:
                for part, checkpoint in load_here(self._folder, plan, by_part, self._processes or 1, say):
                    # As this load's processes report it: another load of the release may write checkpoints too.
                    by_part[part] = checkpoint
                    progress(_rows(by_part), rows)
        self._refuse_rejected(checkpoints, by_part)
        return [by_part[part] for part in range(plan.parts)]

    def prove(self, _plan: Plan, _parts: Sequence[Checkpoint | RegionFacts]) -> Proof:
        """Prove nothing: HBase alone knows the files into which it writes these rows."""
        return Proof()

    def _run_job(self, client: JobClient, plan: Plan, progress: Callable[[float], None]) -> None:
        """Load in a job of map tasks alone, one for each part; the task of a loaded part only reads it."""
        client.require_nodes()
        with self._folder.scratch("load") as scratch:
            client.put(scratch, {BUNDLE: load_bundle(), PLAN: to_file(plan)})
            client.run(self._job(client, plan, scratch), progress)

    def _job(self, client: JobClient, plan: Plan, scratch: str) -> Job:
        hadoop, tasks = self._settings.hadoop, self._processes
        archives, python_path = client.modules(f"{scratch}/{BUNDLE}")
        # If the limit equals the number of tasks, Hadoop's ApplicationMaster gives the container for a second attempt
        # back while the other tasks run, and never asks again.
        limits = {"mapreduce.job.running.map.limit": str(tasks)} if tasks and tasks < plan.parts else {}
        return Job(
            name=f"predictions load {self._settings.name} {self._folder.release}",
            input=f"{self._folder.path}/scored/part-*",
            output=f"{scratch}/output",
            mapper=f"{hadoop.python} -m loader {PLAN}",
            files=[f"hdfs://{scratch}/{PLAN}"],
            archives=archives,
            properties={**_PROPERTIES, **limits, **hadoop.properties},
            environment={"PYTHONPATH": python_path},
        )

    def _show_progress(self, plan: Plan, rows: int, progress: Callable[[float, float], None]) -> None:
        """Show how far a job's tasks are; if HBase does not answer, the job goes on, and its next report shows it."""
        with suppress(ServiceError), Connection(self._settings.hbase.server()) as connection:
            progress(_rows(Checkpoints(connection, plan).read_all()), rows)

    def _refuse_rejected(self, checkpoints: Checkpoints, by_part: dict[int, Checkpoint]) -> None:
        """If HBase rejected rows, list them in a file, let the next load repeat their parts, and raise RefusedError."""
        folder = self._folder
        folder.remove(REJECTED)
        parts = [part for part, checkpoint in by_part.items() if checkpoint.rejected]
        if not parts:
            return
        letters = [letter for part in parts for letter in checkpoints.rejected(part)]
        lines = write_rows((letter.record_id, escape(letter.reason.encode())) for letter in letters)
        with folder.writing(REJECTED, make=False) as temporary, folder.create(temporary) as file:
            file.write(REJECTED_HEAD + lines)
        for part in parts:
            checkpoints.remove(part)
        raise RefusedError(
            f"HBase rejected {len(letters):,} rows and accepted all others; the first reason: {letters[0].reason}; "
            f"{folder.path}/{REJECTED} has each record ID with its reason; fix the cause and load again"
        )


def load_here(
    folder: ReleaseFolder, plan: Plan, checkpoints: Mapping[int, Checkpoint], processes: int, say: Callable[[str], None]
) -> Iterator[tuple[int, Checkpoint]]:
    """Load parts of a release in processes of this machine; yield a part's number and checkpoint after each batch.

    Args:
        folder: the release's folder.
        plan: the load's plan; its rate is that of one process.
        checkpoints: the checkpoints before the load, by part number; complete parts are left out.
        processes: how many run at once.
        say: called with a line when a part waits for HBase, and again when the reason changes.
    """
    parts = [part for part, checkpoint in checkpoints.items() if not checkpoint.complete]
    reasons: dict[int, str] = {}  # why parts wait
    for event in run_tasks(partial(_load, folder, plan), parts, processes):
        part = parts[event.task]
        if isinstance(event.value, Checkpoint):
            reasons.pop(part, None)
            yield part, event.value
        elif reasons.get(part) != event.value:
            reasons[part] = event.value
            say(f"{part_name(part)} is waiting for HBase: {event.value}")


def _load(folder: ReleaseFolder, plan: Plan, part: int, report: Report) -> Checkpoint:
    gc.disable()  # a batch is tens of thousands of objects without a cycle; searching for one took a fifth of the time
    path = folder.part("scored", part)
    with Connection(plan.server, waiting=report) as connection:
        return load_part(connection, plan, part, lambda offset: folder.blocks(path, offset, end=b""), report)


def _rows(checkpoints: Mapping[int, Checkpoint]) -> int:
    return sum(checkpoint.rows for checkpoint in checkpoints.values())
