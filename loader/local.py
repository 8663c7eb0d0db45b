"""The loader on this machine: a few processes, each with the next part and a connection of its own."""

import gc
from collections.abc import Callable, Sequence
from functools import partial

from loader.checkpoints import Checkpoint
from loader.part import load_part
from loader.plan import Plan
from predictions.hbase.connection import Connection
from predictions.progress import DONE, LOADING
from predictions.storage import ReleaseFolder
from predictions.workers import Report, run_tasks

PartState = Callable[[int, str, int], None]


def load_local(
    folder: ReleaseFolder, plan: Plan, parts: Sequence[int], processes: int, progress: PartState
) -> dict[int, Checkpoint]:
    """Load parts of a release.

    Args:
        folder: where its part files are.
        plan: of the load; its rate is that of one process.
        parts: their numbers.
        processes: how many at once.
        progress: called with a part's number, its state and its rows so far.

    Returns:
        How far each of them has come: to its end.

    Raises:
        InputError, RefusedError, ServiceError: as `loader.part.load_part`.
        InternalError: a process died.
    """
    done: dict[int, Checkpoint] = {}
    for event in run_tasks(partial(_load, folder, plan), parts, processes):
        part = parts[event.task]
        if event.done:
            done[part] = event.value
            progress(part, DONE, done[part].rows)
        else:
            progress(part, *event.value)
    return done


def _load(folder: ReleaseFolder, plan: Plan, part: int, report: Report) -> Checkpoint:
    gc.disable()  # a batch is ten thousands of objects, none in a cycle: to look for one took a fifth of the time
    rows = 0

    def loaded(done: Checkpoint) -> None:
        nonlocal rows
        rows = done.rows
        report((LOADING, rows))

    path = folder.part("scored", part)
    with Connection(plan.server, lambda reason: report((f"waiting for HBase: {reason}", rows))) as connection:
        return load_part(connection, plan, part, lambda offset: folder.blocks(path, offset, end=b""), loaded)
