"""Counters: what each stage of a job counted, as Hadoop Streaming takes them and as its report shows them.

A script writes `reporter:counter:GROUP,NAME,AMOUNT` to stderr (Hadoop Streaming's documentation, "How do I update
counters in streaming applications?"). Hadoop adds them up over the attempts that were committed, in signed 64 bits.
"""

import re
from collections import Counter
from typing import NamedTuple, TextIO

GROUP = "predictions"
_WRITTEN = re.compile(rf"^reporter:counter:{GROUP},(\w+),(-?\d+)$", re.MULTILINE)
_REPORTED = re.compile(rf"^\s*{GROUP}\s*\n((?:\s+[\w ]+=-?\d+\s*\n)+)", re.MULTILINE)


class Outcome(NamedTuple):
    """What a run of the scripts comes to: their counters, and the job that it was, if it was one."""

    counters: dict[str, int]
    job: str | None = None


def report(stderr: TextIO, **counts: int) -> None:
    """Write the counts, each once: a counter line costs Hadoop about a millisecond.

    A count from 2**63 on, as a digest may be, is written in two's complement; whatever wraps, the sum modulo 2**64 is
    right.
    """
    for name, count in counts.items():
        stderr.write(f"reporter:counter:{GROUP},{name},{_signed(count)}\n")
    stderr.flush()


def parse_lines(stderr: str) -> dict[str, int]:
    """Return the sums of the counter lines in what scripts wrote to stderr, as Hadoop would report them."""
    sums = Counter[str]()
    for name, amount in _WRITTEN.findall(stderr):
        sums[name] += int(amount)
    return {name: _signed(amount) for name, amount in sums.items()}


def parse_report(text: str) -> dict[str, int]:
    """Return our group's counters from what `hadoop jar` prints at the end of a job.

    Hadoop's local job runner prints those of each task before them.
    """
    found = _REPORTED.findall(text)
    pairs = (line.split("=") for line in found[-1].splitlines()) if found else ()
    return {name.strip(): int(count) for name, count in pairs}


def _signed(count: int) -> int:
    return (count + (1 << 63)) % (1 << 64) - (1 << 63)
