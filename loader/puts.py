"""The loader by puts: in processes of this machine or as a job, from each region's last checkpoint on."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial

from loader.checkpoints import Checkpoint, Checkpoints
from loader.part import load_part
from loader.plan import Plan
from predictions.errors import RefusedError, ServiceError
from predictions.formats.document import to_file
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
    # A part is one task's, whatever its size.
    "mapreduce.input.fileinputformat.split.minsize": str(1 << 62),
    # A second attempt would do no harm, but it would write the same rows again to a region that is slow already.
    "mapreduce.map.speculative": "false",
}


class PutLoad:
    """A load by puts.

    Args:
        settings: where HBase is, and how a job runs.
        folder: the release's.
        in_job: whether a job loads, rather than processes of this machine.
        processes: how many at once, or tasks; None for as many tasks as the cluster can run.

    Raises:
        InputError: `hadoop` is not there, or the storage is not HDFS, and it is to be a job.
    """

    def __init__(self, settings: Settings, folder: ReleaseFolder, in_job: bool, processes: int | None) -> None:
        self._settings = settings
        self._folder = folder
        self._processes = processes
        self._client = JobClient(settings, folder) if in_job else None

    def load(
        self, connection: Connection, plan: Plan, rows: int, bar: Bar, say: Callable[[str], None]
    ) -> list[Checkpoint]:
        """Load what is not loaded yet, and return how far each part has come: to its end.

        Raises:
            InputError: a part file's lines are not its region's, or not in order.
            RefusedError: HBase refuses rows; the others are loaded.
            ServiceError: HBase could not be had in time, or YARN.
            InternalError: the job failed, or a process died.
        """
        checkpoints = Checkpoints(connection, plan)
        done = checkpoints.read_all()
        with bar("load", "rows") as progress:
            progress(_rows(done), rows)
            if self._client:
                self._run_job(self._client, plan, lambda _share: self._show(plan, rows, progress))
                done = checkpoints.read_all()
            else:
                for part, checkpoint in load_here(self._folder, plan, done, self._processes or 1, say):
                    # By the processes' own account: another load of the same release may have put checkpoints too.
                    done[part] = checkpoint
                    progress(_rows(done), rows)
        self._refuse_rejected(checkpoints, done)
        return [done[part] for part in range(plan.parts)]

    def _run_job(self, client: JobClient, plan: Plan, progress: Callable[[float], None]) -> None:
        """Load by a job of map tasks alone, one a part; one that is loaded already is only read."""
        client.require_nodes()
        with self._folder.scratch("load") as scratch:
            client.put(scratch, {BUNDLE: load_bundle(), PLAN: to_file(plan)})
            client.run(self._job(client, plan, scratch), progress)

    def _job(self, client: JobClient, plan: Plan, scratch: str) -> Job:
        hadoop, tasks = self._settings.hadoop, self._processes
        archives, python_path = client.modules(f"{scratch}/{BUNDLE}")
        # With a limit that is the number of tasks, Hadoop's ApplicationMaster gives the container for a second attempt
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

    def _show(self, plan: Plan, rows: int, progress: Callable[[float, float], None]) -> None:
        """Show how far a job's tasks are; where HBase is away it goes on, and its next sign of life will show it."""
        with suppress(ServiceError), Connection(self._settings.hbase.server()) as connection:
            progress(_rows(Checkpoints(connection, plan).read_all()), rows)

    def _refuse_rejected(self, checkpoints: Checkpoints, done: dict[int, Checkpoint]) -> None:
        """Raise RefusedError if HBase refused rows; they are kept in a file, and their parts will be loaded again."""
        folder = self._folder
        folder.remove(REJECTED)
        parts = [part for part, checkpoint in done.items() if checkpoint.rejected]
        if not parts:
            return
        letters = [letter for part in parts for letter in checkpoints.rejected(part)]
        lines = write_rows((letter.record_id, escape(letter.reason.encode())) for letter in letters)
        with folder.writing(REJECTED, make=False) as temporary, folder.create(temporary) as file:
            file.write(REJECTED_HEAD + lines)
        for part in parts:
            checkpoints.remove(part)
        raise RefusedError(
            f"HBase refused {len(letters):,} rows, the first one since {letters[0].reason}; they are in "
            f"{folder.path}/{REJECTED}, each with its record ID and reason, and all others are loaded: mend the cause "
            "and load again"
        )


def load_here(
    folder: ReleaseFolder, plan: Plan, before: Mapping[int, Checkpoint], processes: int, say: Callable[[str], None]
) -> Iterator[tuple[int, Checkpoint]]:
    """Load parts of a release in processes of this machine, and yield each one's number and how far it has come.

    Args:
        folder: where its part files are.
        plan: of the load; its rate is that of one process.
        before: how far the parts have come, by their numbers; those that are complete are left out.
        processes: how many at once.
        say: called with a line where a part waits for HBase, whenever the reason is another one.
    """
    parts = [part for part, checkpoint in before.items() if not checkpoint.complete]
    reason = ""
    for event in run_tasks(partial(_load, folder, plan), parts, processes):
        if isinstance(event.value, Checkpoint):
            yield parts[event.task], event.value
        elif event.value != reason:
            reason = event.value
            say(f"{part_name(parts[event.task])} waits for HBase: {reason}")


def _load(folder: ReleaseFolder, plan: Plan, part: int, report: Report) -> Checkpoint:
    gc.disable()  # a batch is ten thousands of objects, none in a cycle: to look for one took a fifth of the time
    path = folder.part("scored", part)
    with Connection(plan.server, waiting=report) as connection:
        return load_part(connection, plan, part, lambda offset: folder.blocks(path, offset, end=b""), report)


def _rows(done: Mapping[int, Checkpoint]) -> int:
    return sum(checkpoint.rows for checkpoint in done.values())
