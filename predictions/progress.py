"""Show progress on stderr: a bar on a terminal, elsewhere a plain line every few seconds."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 10.0
Bar = Callable[[str, str], AbstractContextManager[Callable[[float, float], None]]]  # the type of `bar`

console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Write a line to stderr."""
    console.print(text, markup=False, emoji=False)


@contextmanager
def bar(label: str, unit: str = "") -> Iterator[Callable[[float, float], None]]:
    """Show the progress of a stage; yield a function to call with the amount done and the total."""
    if console.is_terminal:
        amount = MofNCompleteColumn() if unit else TaskProgressColumn()
        columns = (TextColumn("{task.description}"), BarColumn(), amount, TextColumn(unit), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(label, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
        return
    last_line = time.monotonic()

    def line(done: float, total: float) -> None:
        nonlocal last_line
        if time.monotonic() - last_line >= PLAIN_SECONDS:
            last_line = time.monotonic()
            say(f"{label}: {done:,} of {total:,} {unit}" if unit else f"{label}: {done / total:.0%}")

    yield line
