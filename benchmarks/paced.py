"""Look up random records at a fixed rate in a process of its own, which writes down what each lookup took.

The process gets the settings by environment variables. A lookup's time begins when it was due, not when a thread was
free for it (an open loop); the due times are those of a Poisson process. Times are those of the monotonic clock, which
all processes of a machine share.
"""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import click

from benchmarks.flights import CHECKOUT, ROWS, SETTINGS
from benchmarks.latency import Request
from predictions.lookup.client import Client
from predictions.settings import load_settings

THREADS = 16  # lookups at once, at most
START_SECONDS = 120.0  # until the first lookups are answered, at most
END_SECONDS = 60.0  # until the last lookups are answered, at most
COPY = "0-"  # the records are those of the first copy of the flights: their row keys are spread over all blocks


class PacedLookups:
    """Runs the process within the context; it has begun to look up when the context begins.

    Args:
        ids: number of IDs of a lookup.
        rate: lookups per second.
        log: a new file for what each lookup took.
        environment: the process's environment variables.
    """

    def __init__(self, ids: int, rate: float, log: Path, environment: Mapping[str, str]) -> None:
        self.ids, self.rate = ids, rate
        self._log, self._environment = log, environment

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "benchmarks.paced", str(self.ids), str(self.rate), str(self._log)]
        self._process = subprocess.Popen(command, cwd=CHECKOUT, env=self._environment, stdin=subprocess.PIPE)
        deadline = time.monotonic() + START_SECONDS
        while not (self._log.exists() and self._log.stat().st_size):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                raise click.ClickException("the lookups did not begin")
            time.sleep(0.1)
        return self

    def __exit__(self, *_exception: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()  # no further lookup begins
        try:
            self._process.wait(END_SECONDS)
        finally:
            self._process.kill()

    def answered(self) -> tuple[list[Request], list[float]]:
        """Return the lookups, and when those were due that had not found all records fresh; only after the context."""
        lines = [line.split() for line in self._log.read_text().splitlines()]
        requests = [Request(float(due), float(seconds)) for due, seconds, _fresh in lines]
        return requests, [float(due) for due, _seconds, fresh in lines if int(fresh) < self.ids]


def look_up(ids: int, rate: float, log: Path) -> None:
    """Look up records until the standard input ends."""
    chance, lock, ended = random.Random(ids), threading.Lock(), threading.Event()
    with Client(load_settings(SETTINGS)) as client, open(log, "w", buffering=1) as lines:
        client.get(f"{COPY}1")
        next_due = time.monotonic()

        def work() -> None:
            nonlocal next_due
            while True:
                with lock:
                    next_due += chance.expovariate(rate)
                    due = next_due
                    wanted = [f"{COPY}{chance.randint(1, ROWS)}" for _id in range(ids)]
                if ended.wait(max(0.0, due - time.monotonic())):
                    return
                answers = client.get_many(wanted) if ids > 1 else [client.get(wanted[0])]
                seconds = time.monotonic() - due
                fresh = sum(answer.status == "fresh" for answer in answers)
                with lock:
                    lines.write(f"{due:.6f} {seconds:.6f} {fresh}\n")

        threads = [threading.Thread(target=work) for _thread in range(THREADS)]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        ended.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    look_up(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
