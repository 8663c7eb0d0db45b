"""The loader by puts: in processes of this machine or as a job, from each region's last checkpoint on."""

from contextlib import suppress

from loader.checkpoints import Checkpoint, Checkpoints
from loader.job import LoadJob
from loader.local import load_local
from loader.plan import Plan
from predictions.errors import RefusedError, ServiceError
from predictions.formats.record_line import escape, write_rows
from predictions.hbase.connection import Connection
from predictions.progress import DONE, LOADING, WAITING, LoadDisplay
from predictions.settings import Settings
from predictions.storage import ReleaseFolder

REJECTED = "rejected.txt"
REJECTED_HEAD = b"record\treason\n"


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
        self._job = LoadJob(settings, folder) if in_job else None

    def load(self, connection: Connection, plan: Plan, rows: int, display: LoadDisplay) -> list[Checkpoint]:
        """Load what is not loaded yet.

        Raises:
            InputError: a part file's lines are not its region's, or not in order.
            RefusedError: HBase refuses rows; the others are loaded.
            ServiceError: HBase could not be had in time.
            InternalError: the job failed, or a process died.
        """
        checkpoints = Checkpoints(connection, plan)
        done = checkpoints.read_all()
        display.start(rows, {part: _state(checkpoint) for part, checkpoint in done.items()})
        if self._job:
            self._job.run(plan, self._processes, lambda _share: self._show(plan, display))
            done = checkpoints.read_all()
        else:
            todo = [part for part, checkpoint in done.items() if not checkpoint.complete]
            # By the processes' own account: another load of the same release may have put checkpoints of its own.
            done |= load_local(self._folder, plan, todo, self._processes or 1, display.update)
        self._refuse_rejected(checkpoints, done)
        return [done[part] for part in range(plan.parts)]

    def _show(self, plan: Plan, display: LoadDisplay) -> None:
        """Show how far a job's tasks are; where HBase is away it goes on, and its next sign of life will show it."""
        with suppress(ServiceError), Connection(self._settings.hbase.server()) as connection:
            for part, done in Checkpoints(connection, plan).read_all().items():
                display.update(part, *_state(done))

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


def _state(done: Checkpoint) -> tuple[str, int]:
    return DONE if done.complete else LOADING if done.offset else WAITING, done.rows
