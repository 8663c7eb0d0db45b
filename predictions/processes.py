"""Processes that are connected by pipes: none outlives its run, and what failed first is told from what that broke."""

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
KILL_AFTER = 1.0  # seconds that the others get to end by themselves once one has failed


_INTERRUPTING = signal.SIGINT, signal.SIGTERM


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until what is begun here is done; only for the main thread.

    A process or a thread that was interrupted while it was started runs on, and nobody knows of it.
    """
    held: list[int] = []
    kept = {name: signal.signal(name, lambda number, _frame: held.append(number)) for name in _INTERRUPTING}
    try:
        yield
    finally:
        for name, handler in kept.items():
            signal.signal(name, handler)
        if held:
            signal.raise_signal(held[0])


class Processes:
    """The processes of one run.

    Args:
        scratch: a folder where what they write to stderr is kept.
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
        accept: Accept = lambda _code, _said: False,
    ) -> subprocess.Popen[Any]:
        """Start a process whose output is a pipe.

        Args:
            command: the program and its arguments.
            stdin: as of `Popen`; a pipe is handed over to the process.
            environment: variables beside those of this process.
            accept: whether an exit code other than 0 is no failure, given the code and what it wrote to stderr.

        Raises:
            InternalError: the run has been ended.
        """
        with self._lock:
            if self._ended:
                raise InternalError("the run has been ended")
            said = self._scratch / f"{len(self._started)}.stderr"
            with open(said, "wb") as stderr:
                environment = {**os.environ, **environment}
                process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, env=environment)
            self._started.append((process, said, accept))
        if not isinstance(stdin, int):
            stdin.close()  # else the writer at the other end would not notice that its reader died
        return process

    def check(self) -> None:
        """Wait for all of them and raise if one failed.

        Raises:
            InternalError: names the one that failed by itself, with the last line that it wrote.
        """
        ended = [
            (process, process.wait(), said.read_text(errors="replace"), accept)
            for process, said, accept in self._started
        ]
        failed = [(process, code, said) for process, code, said, accept in ended if code and not accept(code, said)]
        # Who lost its reader, or was killed for it, is not the cause.
        failed.sort(key=lambda end: "BrokenPipeError" in end[2] or end[1] in (-signal.SIGPIPE, -signal.SIGKILL))
        if failed:
            raise InternalError(_describe(*failed[0]))

    def fail(self) -> None:
        """Raise for the one that failed, as `check`; the others are ended first."""
        for process, _said, _accept in self._started:
            try:
                process.wait(KILL_AFTER)
            except subprocess.TimeoutExpired:
                process.kill()
        self.check()

    def end(self) -> None:
        """Kill those that still run; no other is started."""
        with self._lock:
            self._ended = True
        for process, _said, _accept in self._started:
            if process.poll() is None:
                process.kill()
                process.wait()

    def said(self) -> str:
        """Return all that they wrote to stderr."""
        return "".join(said.read_text(errors="replace") for _process, said, _accept in self._started)


def _describe(process: subprocess.Popen[Any], code: int, said: str) -> str:
    command: Any = process.args
    name = next((Path(word).name for word in command[:2] if word.endswith(".py")), Path(command[0]).name)
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("reporter:")]
    if code < 0:
        lines = [line for line in lines if line.startswith("Fatal")] or lines
    return f"{name} {how}: {lines[-1].removeprefix(f'{name}: ') if lines else 'it said nothing'}"
