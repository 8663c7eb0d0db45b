"""Run tasks in worker processes, and limit the rate of reads and writes."""

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
    """A message from a task: a report on its progress or, once it is done, its result."""

    task: int
    done: bool
    value: Any


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


class Pace:
    """Limits the rows per second; a rate of None means no limit."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._next = 0.0

    def wait(self, rows: int) -> None:
        """Wait until this number of further rows may be read or written."""
        if self._rate:
            now = time.monotonic()
            time.sleep(max(0.0, self._next - now))
            self._next = max(self._next, now) + rows / self._rate


def run_tasks(work: Callable[[T, Report], Any], tasks: Sequence[T], processes: int) -> Iterator[Event]:
    """Run tasks in processes, each of which takes the next task when it is done; yield their reports as they arrive.

    If the parent process is killed, each process ends with its next report.

    Args:
        work: called in a process with a task and a function that sends a report. It, the tasks, the reports and the
            results must be picklable.
        tasks: the tasks, in the order in which they are started.
        processes: number of processes at the same time.

    Raises:
        PredictionsError: raised by a task; the others are ended.
        InternalError: a process died.
    """
    context = multiprocessing.get_context("spawn")  # a forked process would inherit sockets, and locks held by threads
    waiting = list(enumerate(tasks))[::-1]
    running: dict[Connection, tuple[SpawnProcess, int]] = {}
    started: list[SpawnProcess] = []
    try:
        for _process in range(min(processes, len(waiting))):
            pipe, child_pipe = context.Pipe()
            process = context.Process(target=_serve, args=(work, child_pipe), daemon=True)
            process.start()
            child_pipe.close()
            started.append(process)
            running[pipe] = process, _send_next(pipe, waiting)
        while running:
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                process, number = running[ready]
                done, value = _receive(ready, process)
                yield Event(number, done, value)
                if done and waiting:
                    running[ready] = process, _send_next(ready, waiting)
                elif done:
                    del running[ready]
                    ready.close()
    finally:
        for process in started:
            process.terminate()
            process.join()


def _send_next(pipe: Connection, waiting: list[tuple[int, Any]]) -> int:
    """Send the next task and return its number."""
    number, task = waiting.pop()
    with suppress(BrokenPipeError):  # the process is dead, which `_receive` will notice
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one
    signal.signal(
        signal.SIGTERM, lambda number, _frame: sys.exit(128 + number)
    )  # an exception, so that temporary files are removed
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
        pass  # the parent has closed the pipe, or was killed
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing is left to clean up
