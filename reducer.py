#!/usr/bin/env python3
"""Keep exactly one prediction a record ID: prediction lines in, sorted by row key; prediction lines out.

    cat part-* | ./mapper.py model.json 20261122T154500Z | LC_ALL=C sort -t$'\\t' -k1,1 -s | ./reducer.py

A record that came twice with the same features is written once. One ID with different features has no one
prediction: five examples are shown and the job is refused.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby

from predictions import counters, rowkey
from predictions.errors import InputError, PredictionsError
from predictions.records import SEPARATOR
from predictions.schema import PredictionLine, parse_line

EXAMPLES = 5
SEPARATORS = len(PredictionLine._fields) - 1


def key_of(line: bytes) -> bytes:
    return line.partition(SEPARATOR)[0]


def unique(lines: Iterable[bytes], counts: Counter[str]) -> Iterator[bytes]:
    """Yield one line of each row key, in the order of the keys."""
    conflicts: list[str] = []
    previous = b""
    for key, group in groupby(lines, key_of):
        if key <= previous:
            raise InputError(f"row key {key!r} comes after {previous!r}: sort with LC_ALL=C sort -t$'\\t' -k1,1 -s")
        previous = key
        line, *others = group
        if line.count(SEPARATOR) != SEPARATORS:
            parse_line(line)  # says what is wrong
        if others and {parse_line(other).record for other in others} != {parse_line(line).record}:
            conflicts.append(rowkey.record_id(key).decode(errors="replace"))
            if len(conflicts) == EXAMPLES:
                break
        counts.update(predictions=1, duplicates=len(others))
        # The same record in two blocks may differ in a last digit: any choice would do that is always the same.
        yield min(line, *others) if others else line
    if conflicts:
        raise InputError(
            f"the ID is not unique: {len(conflicts)} or more IDs stand for different records: {', '.join(conflicts)}"
        )


def main() -> int:
    counts = Counter(predictions=0, duplicates=0)
    try:
        sys.stdout.buffer.writelines(unique(sys.stdin.buffer, counts))
    except PredictionsError as error:
        print(f"reducer.py: {error}", file=sys.stderr)
        return error.exit_code
    counters.report(sys.stderr, **counts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
