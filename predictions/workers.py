"""Tasks for processes of our own, each of which takes the next one when it is done; and how fast they may be."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple, TypeVar

from predictions.errors import InternalError, PredictionsError

T = TypeVar("T")
Report = Callable[[Any], None]


class Event(NamedTuple):
    """What came of a task: something it reported on its way, or its result, with which it is done."""

    task: int
    done: bool
    value: Any


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


class Pace:
    """Keeps to so many rows a second; None for as many as there are."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._next = 0.0

    def wait(self, rows: int) -> None:
        """Wait until so many more rows may be read or written."""
        if self._rate:
            now = time.monotonic()
            time.sleep(max(0.0, self._next - now))
            self._next = max(self._next, now) + rows / self._rate


def run_tasks(work: Callable[[T, Report], Any], tasks: Sequence[T], processes: int) -> Iterator[Event]:
    """Do tasks in processes, and yield what they report as it comes.

    A process ends with the next report once its parent is gone, whatever has killed that.

    Args:
        work: called in a process with a task and a function that reports; both must be picklable, as its result.
        tasks: what to do, in the order in which they are begun.
        processes: how many at once.

    Raises:
        PredictionsError: as a task raised it; the others are ended.
        InternalError: a process died.
    """
    context = multiprocessing.get_context("spawn")  # a fork would take over sockets and threads
    todo = list(enumerate(tasks))[::-1]
    running: dict[Connection, tuple[SpawnProcess, int]] = {}
    started: list[SpawnProcess] = []
    try:
        for _process in range(min(processes, len(todo))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(work, theirs), daemon=True)
            process.start()
            theirs.close()
            started.append(process)
            running[ours] = process, _give(ours, todo)
        while running:
            for pipe in wait(list(running)):
                assert isinstance(pipe, Connection)
                process, number = running[pipe]
                done, value = _receive(pipe, process)
                yield Event(number, done, value)
                if done and todo:
                    running[pipe] = process, _give(pipe, todo)
                elif done:
                    del running[pipe]
                    pipe.close()
    finally:
        for process in started:
            process.terminate()
            process.join()


def _give(pipe: Connection, todo: list[tuple[int, Any]]) -> int:
    """Send the next task and return its number."""
    number, task = todo.pop()
    with suppress(BrokenPipeError):  # the process is dead: there will be nothing to receive from it either
        pipe.send(task)
    return number


def _receive(pipe: Connection, process: SpawnProcess) -> tuple[bool, Any]:
    try:
        kind, value = pipe.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise InternalError(f"a process of this run {how}; run the command again") from None
    if kind == "failed":
        raise value
    return kind == "done", value


def _serve(work: Callable[[Any, Report], Any], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keyboard's goes to all; the parent ends its processes
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # as an exception: files are removed
    try:
        while True:
            task = pipe.recv()
            try:
                pipe.send(("done", work(task, lambda value: pipe.send(("report", value)))))
            except PredictionsError as error:
                pipe.send(("failed", error))
            except BrokenPipeError:
                raise
            except Exception as error:
                traceback.print_exc()
                pipe.send(("failed", InternalError(f"{type(error).__name__}: {error}")))
    except (EOFError, BrokenPipeError):
        pass  # the parent is done, or gone
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # there is nothing left to be removed
