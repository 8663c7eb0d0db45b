"""Progress on stderr: a bar on a terminal, a plain line every few seconds elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 10.0
Bar = Callable[[str, str], AbstractContextManager[Callable[[float, float], None]]]  # as `bar`

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
