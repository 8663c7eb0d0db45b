"""Give what is measured a core of its own, as a server of its own would have, and everything else another one."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import click
import psutil

_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


class Cores(NamedTuple):
    """Two CPUs: of the servers that are measured and their clients, and of everything else.

    Args:
        servers: number of the first CPU.
        others: number of the second one.
        one_core: whether they are two threads of one core, which share its units and caches.
    """

    servers: int
    others: int
    one_core: bool

    @classmethod
    def choose(cls) -> "Cores":
        """Choose two of the CPUs that this process may use, of different cores if possible."""
        cpus = sorted(os.sched_getaffinity(0))
        if len(cpus) < 2:
            raise click.ClickException("this benchmark needs two CPUs")
        siblings = _siblings(cpus[0])
        apart = [cpu for cpu in cpus[1:] if cpu not in siblings]
        return cls(cpus[0], (apart or cpus[1:])[0], not apart)

    def __str__(self) -> str:
        kind = "two threads of one core" if self.one_core else "two cores, as the system reports"
        return f"CPUs {self.servers} and {self.others}: {kind}"


def _siblings(cpu: int) -> set[int]:
    ranges = (part.partition("-")[::2] for part in Path(_SIBLINGS.format(cpu)).read_text().strip().split(","))
    return {number for first, last in ranges for number in range(int(first), int(last or first) + 1)}


@contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    """Let this thread, and the processes and threads that it starts in the context, use this CPU alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def confined(processes: Iterable[psutil.Process], cpu: int) -> Iterator[None]:
    """Let running processes, and what they start in the context, use this CPU alone.

    A JVM that started with all CPUs keeps its threads and its garbage collector.
    """
    before = [(process.pid, os.sched_getaffinity(process.pid)) for process in processes]
    for pid, _cpus in before:
        _allow(pid, {cpu})
    try:
        yield
    finally:
        for pid, cpus in before:
            _allow(pid, cpus)


def _allow(pid: int, cpus: set[int]) -> None:
    """Set the CPUs of all threads of a process; a thread that has started meanwhile has those of the one before."""
    with suppress(OSError):  # the process, or a thread, has ended
        while threads := [
            int(thread.name)
            for thread in Path(f"/proc/{pid}/task").iterdir()
            if os.sched_getaffinity(int(thread.name)) != cpus
        ]:
            for thread in threads:
                os.sched_setaffinity(thread, cpus)
