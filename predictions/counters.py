"""Counters: what each stage of a job counted, as Hadoop Streaming takes them and as its report shows them.

A script writes `reporter:counter:GROUP,NAME,AMOUNT` to stderr (Hadoop Streaming's documentation, "How do I update
counters in streaming applications?"). Hadoop adds them up over the attempts that were committed, in signed 64 bits.
"""

import re
from typing import TextIO

GROUP = "predictions"
_REPORTED = re.compile(rf"^\s*{GROUP}\s*\n((?:\s+[\w ]+=-?\d+\s*\n)+)", re.MULTILINE)


def report(stderr: TextIO, **counts: int) -> None:
    """Write the counts, each once: a counter line costs Hadoop about a millisecond."""
    for name, count in counts.items():
        stderr.write(f"reporter:counter:{GROUP},{name},{count}\n")
    stderr.flush()


def parse_report(text: str) -> dict[str, int]:
    """Return our group's counters from what `hadoop jar` prints at the end of a job."""
    found = _REPORTED.search(text)
    pairs = (line.split("=") for line in found[1].splitlines()) if found else ()
    return {name.strip(): int(count) for name, count in pairs}
