"""Run piped subprocesses; end them all with the run, and report the first failure, not its consequences."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from predictions.errors import InternalError

Accept = Callable[[int, str], bool]
KILL_AFTER = 1.0  # seconds that each of the others has to end once one has failed

_INTERRUPTS = signal.SIGINT, signal.SIGTERM
_CONSEQUENCES = -signal.SIGPIPE, -signal.SIGKILL  # exit codes of processes that another failure has ended


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the end of the block; only for the main thread.

    If an interrupt came while a process or a thread was being started, it would run on without being registered.
    """
    received: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _frame: received.append(number)) for number in _INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


class Processes:
    """The processes of one run.

    Args:
        scratch: folder for the processes' stderr.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._started: list[tuple[subprocess.Popen[bytes], Path, Accept]] = []
        self._lock = threading.Lock()
        self._ended = False

    def start(
        self,
        command: Sequence[str],
        stdin: IO[bytes] | int,
        environment: Mapping[str, str],
        accept: Accept = lambda _code, _stderr: False,
    ) -> subprocess.Popen[Any]:
        """Start a process whose output is a pipe.

        Args:
            command: the program and its arguments.
            stdin: as in `Popen`; a pipe is closed here once the process has it.
            environment: environment variables in addition to those of this process.
            accept: called with an exit code other than 0 and the text on stderr; returns True if this is not a failure.

        Raises:
            InternalError: the run has ended.
        """
        with self._lock:
            if self._ended:
                raise InternalError("the run has ended")
            path = self._scratch / f"{len(self._started)}.stderr"
            with open(path, "wb") as stderr:
                environment = {**os.environ, **environment}
                process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, env=environment)
            self._started.append((process, path, accept))
        if not isinstance(stdin, int):
            stdin.close()  # else the writer of the pipe would not notice the death of this process
        return process

    def check(self) -> None:
        """Wait for all processes and raise if one failed.

        Raises:
            InternalError: names the process that caused the failure, with the last line of its stderr.
        """
        ended = [
            (process, process.wait(), path.read_text(errors="replace"), accept)
            for process, path, accept in self._started
        ]
        failed = [
            (process, code, stderr) for process, code, stderr, accept in ended if code and not accept(code, stderr)
        ]
        # A process that lost its reader, or was killed because of that, is not the cause: it is sorted to the end.
        failed.sort(key=lambda failure: "BrokenPipeError" in failure[2] or failure[1] in _CONSEQUENCES)
        if failed:
            raise InternalError(_describe(*failed[0]))

    def fail(self) -> None:
        """End all processes, those that still run by force, and raise for the one that failed (see `check`)."""
        for process, _path, _accept in self._started:
            try:
                process.wait(KILL_AFTER)
            except subprocess.TimeoutExpired:
                process.kill()
        self.check()

    def end(self) -> None:
        """Kill the processes that still run; no other can be started."""
        with self._lock:
            self._ended = True
        for process, _path, _accept in self._started:
            if process.poll() is None:
                process.kill()
                process.wait()

    def said(self) -> str:
        """Return all that the processes wrote to stderr."""
        return "".join(path.read_text(errors="replace") for _process, path, _accept in self._started)


def _describe(process: subprocess.Popen[Any], code: int, stderr: str) -> str:
    command: Any = process.args
    name = next((Path(word).name for word in command[:2] if word.endswith(".py")), Path(command[0]).name)
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    lines = [line for line in stderr.splitlines() if line.strip() and not line.startswith("reporter:")]
    if code < 0:
        lines = [line for line in lines if line.startswith("Fatal")] or lines
    return f"{name} {how}: {lines[-1].removeprefix(f'{name}: ') if lines else 'it wrote nothing to stderr'}"
