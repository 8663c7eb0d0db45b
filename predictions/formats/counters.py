"""The counters of a job: write them for Hadoop Streaming, and read them from its report.

A script writes `reporter:counter:GROUP,NAME,AMOUNT` to stderr (Hadoop Streaming's documentation, "How do I update
counters in streaming applications?"). Hadoop adds up those of the committed attempts, in signed 64 bits.
"""

import re
from collections import Counter
from typing import NamedTuple, TextIO

GROUP = "predictions"
_WRITTEN = re.compile(rf"^reporter:counter:{GROUP},(\w+),(-?\d+)$", re.MULTILINE)
_REPORTED = re.compile(rf"^\s*{GROUP}\s*\n((?:\s+[\w ]+=-?\d+\s*\n)+)", re.MULTILINE)


class Outcome(NamedTuple):
    """The counters of a finished mapper and reducer run, and the job ID, or None if no Hadoop job ran."""

    counters: dict[str, int]
    job: str | None = None


def report(stderr: TextIO, **counts: int) -> None:
    """Write a counter line for each count; call it once per task, as each line costs Hadoop about a millisecond.

    A count of 2**63 or more (an ID digest can be that large) is written in two's complement. The sums may wrap around,
    but they are right modulo 2**64.
    """
    for name, count in counts.items():
        stderr.write(f"reporter:counter:{GROUP},{name},{_signed(count)}\n")
    stderr.flush()


def parse_lines(stderr: str) -> dict[str, int]:
    """Add up the counter lines in the scripts' stderr, and return the sums as Hadoop would report them."""
    sums = Counter[str]()
    for name, amount in _WRITTEN.findall(stderr):
        sums[name] += int(amount)
    return {name: _signed(amount) for name, amount in sums.items()}


def parse_report(text: str) -> dict[str, int]:
    """Return this project's counters from the report that `hadoop jar` prints at the end of a job.

    Hadoop's local job runner prints the counters of each task first, so the last group holds the job's.
    """
    groups = _REPORTED.findall(text)
    pairs = (line.split("=") for line in groups[-1].splitlines()) if groups else ()
    return {name.strip(): int(count) for name, count in pairs}


def _signed(count: int) -> int:
    return (count + (1 << 63)) % (1 << 64) - (1 << 63)
