"""Progress on stderr: a bar on a terminal, a plain line every few seconds elsewhere."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

PLAIN_SECONDS = 10.0
# States of a part; any other says what it waits for.
WAITING, WRITING, CHECKING, LOADING, DONE = "waiting", "writing its HFile", "checking its HFile", "loading", "done"
QUIET = (WAITING, DONE)  # states that need no line of their own

console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Write a line to stderr."""
    console.print(text, markup=False)


@contextmanager
def bar(label: str, unit: str = "") -> Iterator[Callable[[float, float], None]]:
    """Show the progress of one stage; the context's value is to be called with what is done and the total."""
    if console.is_terminal:
        amount = MofNCompleteColumn() if unit else TaskProgressColumn()
        columns = (TextColumn("{task.description}"), BarColumn(), amount, TextColumn(unit), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(label, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
        return
    last = time.monotonic()

    def line(done: float, total: float) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            say(f"{label}: {done:,} of {total:,} {unit}" if unit else f"{label}: {done / total:.0%}")

    yield line


class LoadDisplay:
    """The progress of a load: all rows on a terminal's first line, a line below it for each part that is being loaded.

    Elsewhere it is a plain line every few seconds.
    """

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._states: dict[int, str] = {}
        self._total = self._before = 0
        self._started = self._last = time.monotonic()
        self._lines: dict[int, TaskID] = {}
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[more]}", markup=False),
        )
        self._bar = Progress(*columns, console=console, transient=True)

    def __enter__(self) -> Self:
        if console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        if console.is_terminal:
            self._bar.stop()

    def start(self, total: int, parts: Mapping[int, tuple[str, int]]) -> None:
        """Say how many rows there are, and of each part its state and how many of its rows are loaded already."""
        self._states = {part: state for part, (state, _rows) in parts.items()}
        self._rows = {part: rows for part, (_state, rows) in parts.items()}
        self._total, self._before = total, sum(self._rows.values())
        self._started = time.monotonic()
        self._all = self._bar.add_task("load", total=total, completed=self._before, more="rows")

    def update(self, part: int, state: str, rows: int) -> None:
        """Say what a part does, and how many of its rows are loaded."""
        self._rows[part], self._states[part] = rows, state
        if part not in self._lines and state not in QUIET:
            self._lines[part] = self._bar.add_task(f"  part {part}", total=self._total // len(self._rows), more="")
        if part in self._lines:
            self._bar.update(self._lines[part], completed=rows, more=state, visible=state not in QUIET)
        self._bar.update(self._all, completed=sum(self._rows.values()), more=f"rows{self._speed()}")
        if not console.is_terminal and time.monotonic() - self._last >= PLAIN_SECONDS:
            self._last = time.monotonic()
            say(f"load: {sum(self._rows.values()):,} of {self._total:,} rows{self._speed()}; {self._parts()}")

    def _speed(self) -> str:
        seconds, done = time.monotonic() - self._started, sum(self._rows.values())
        if seconds < 1 or done == self._before:
            return ""
        rate = (done - self._before) / seconds
        return f", {rate:,.0f} a second, {timedelta(seconds=round((self._total - done) / rate))} left"

    def _parts(self) -> str:
        done = sum(state == DONE for state in self._states.values())
        busy = [f"part {part} {state}" for part, state in sorted(self._states.items()) if state not in QUIET]
        return ", ".join([f"{done} of {len(self._rows)} regions done", *busy])
