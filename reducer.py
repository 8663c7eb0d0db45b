#!/usr/bin/env python3
"""Keep exactly one prediction a record ID: prediction lines in, sorted by row key; prediction lines out.

    cat part-* | ./mapper.py model.json 20261122T154500Z | LC_ALL=C sort -t$'\\t' -k1,1 -s | ./reducer.py

A record that came twice with the same features is written once. One ID with different features has no one
prediction: its line says so, and the job is refused. Lines that no one could read stand last.

    ... | ./reducer.py FOLDER

With a folder, its region's HFile is written beside the lines (`predictions.formats.hfile.region_file`): there, and in
a job into a folder of this name in the job's output.

    ... | ./reducer.py FOLDER AGAINST

In a job, with the file AGAINST (`predictions.task.current`), the lines are compared with the current release's as they
are written, and what was found goes into the folder too.

    ... | ./mapper.py model.json RELEASE MARKS | sort ... | ./reducer.py --changed LINES

Records that have not changed come unscored, and keep their lines of the current release (`predictions.task.carry`).
LINES is a file of that release's lines, or AGAINST, which says where they are.
"""

import sys
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter, itemgetter, lt
from pathlib import Path

from predictions.errors import InputError, InternalError, PredictionsError, RefusedError
from predictions.formats import counters, unreadable
from predictions.formats.hfile.region_file import RegionFile
from predictions.formats.prediction_line import (
    END_OF_CONFLICT,
    END_OF_SCORED,
    END_OF_UNSCORED,
    NOT_UNIQUE,
    fields_of,
    not_unique,
    parse_line,
)
from predictions.formats.record_line import first_fields, id_digest, join_lines, read_blocks, split_lines
from predictions.formats.row_key import record_id
from predictions.task import environment as task
from predictions.task.carry import carry_over
from predictions.task.current import AGAINST_FILE, Against, LostError, write_state
from predictions.task.upload import upload

EXAMPLES = 5


def unique(blocks: Iterable[bytes], counts: Counter[str], conflicts: list[str]) -> Iterator[bytes]:
    """Yield the lines of each block, one for each row key, in the order of the keys.

    The first IDs that stand for different records are added to `conflicts`.
    """
    held = b""  # the last line: the next block may begin with others of its key
    for block in blocks:
        body, keys = one_each(held + block, counts, conflicts)
        end = body.rfind(b"\n", 0, -1) + 1
        count(body[:end], keys[:-1], counts)
        yield body[:end]
        held = body[end:]
    if held:
        count(held, [parse_line(held).row_key], counts)
        yield held


def one_each(block: bytes, counts: Counter[str], conflicts: list[str]) -> tuple[bytes, Sequence[bytes]]:
    """Return a block with one line for each row key, and the keys."""
    keys = first_fields(block, fields_of(block))
    if all(map(lt, keys, keys[1:])):
        return block, keys
    kept: list[tuple[bytes, bytes]] = []
    previous = b""
    for key, pairs in groupby(zip(keys, split_lines(block), strict=True), itemgetter(0)):
        if key <= previous:
            raise InputError(f"row key {key!r} comes after {previous!r}: sort with LC_ALL=C sort -t$'\\t' -k1,1 -s")
        previous = key
        lines = [line for _key, line in pairs]
        if not key.startswith(unreadable.KEY):
            counts["duplicates"] += len(lines) - 1
            counts["duplicates_digest"] += id_digest([record_id(key)]) * (len(lines) - 1)
            lines = [merge(lines, conflicts)]
        kept += [(key, line) for line in lines]
    return join_lines(line for _key, line in kept), [key for key, _line in kept]


def merge(lines: list[bytes], conflicts: list[str]) -> bytes:
    """Return the one line for lines of one row key."""
    if len(lines) == 1:
        return lines[0]
    parsed = list(map(parse_line, lines))
    if len({line.record for line in parsed}) == 1 and NOT_UNIQUE not in {line.error for line in parsed}:
        # The same record in two blocks may differ in a last digit: any choice would do that is always the same.
        return min(lines)
    name = record_id(parsed[0].row_key).decode(errors="replace")
    if name not in conflicts and len(conflicts) < EXAMPLES:
        conflicts.append(name)
    return not_unique(min(parsed, key=attrgetter("record")))  # whatever the order they came in


def count(body: bytes, keys: Sequence[bytes], counts: Counter[str]) -> None:
    """Count what is written: lines with their row keys, in order."""
    if END_OF_UNSCORED in body:
        raise InputError(f"the records come unscored: {task.CHANGED} LINES has to say where their lines are")
    records = bisect_left(keys, unreadable.KEY)
    scored = body.count(END_OF_SCORED)
    counts["scored"] += scored
    counts["failed"] += records - scored
    counts["conflicts"] += body.count(END_OF_CONFLICT)
    counts["written_digest"] += id_digest(map(record_id, keys[:records]))
    counts["unreadable_written"] += len(keys) - records


def refuse(counts: Counter[str], conflicts: list[str]) -> None:
    """Raise if what was written is not fit for use."""
    if conflicts:
        raise InputError(
            f"{NOT_UNIQUE.decode()}, {counts['conflicts']:,} times, for example {', '.join(conflicts)}: give each "
            "record an ID of its own"
        )
    if counts["unreadable_written"]:
        raise RefusedError(f"{counts['unreadable_written']:,} lines could not be read; they stand last in the output")


def write(lines: Iterable[bytes], folder: str | None = None, against: str | None = None) -> None:
    """Write the lines, into a folder their HFile, and beside it how they compare with the current release's."""
    if folder:
        part = task.partition()
        with RegionFile(folder, part) as file:
            written = write_both(lines, file)
            if not against:
                deque(written, maxlen=0)
            elif found := Against.parse(Path(against).read_bytes()).compare(written, part):
                write_state(found, folder, part)
        upload(folder)
    else:
        sys.stdout.buffer.writelines(lines)
    sys.stdout.flush()


def write_both(lines: Iterable[bytes], file: RegionFile) -> Iterator[bytes]:
    """Write the lines, and those of records into their HFile; yield the latter."""
    for block in lines:
        sys.stdout.buffer.write(block)
        records = unreadable.records(block)
        file.write(records)
        yield records


def changed(blocks: Iterable[bytes], lines: str, counts: Counter[str]) -> Iterator[bytes]:
    """Yield prediction lines alone: the current release's in the place of those that were not scored."""
    try:
        if Path(lines).name != AGAINST_FILE:
            with open(lines, "rb") as file:
                yield from carry_over(blocks, read_blocks(file), counts)
            return
        against = Against.parse(Path(lines).read_bytes())
    except OSError as error:
        raise InputError(f"{lines}: {error.strerror}") from error
    try:
        yield from carry_over(blocks, against.lines(task.partition()), counts)
    except LostError as error:
        raise InternalError(f"the lines of release {against.release} cannot be had: {error}") from error


def main(*arguments: str) -> int:
    at = arguments.index(task.CHANGED) if task.CHANGED in arguments else len(arguments)
    places, option = arguments[:at], arguments[at + 1 :]
    if len(places) > 2 or (at < len(arguments) and len(option) != 1):
        print(f"usage: reducer.py [FOLDER [AGAINST]] [{task.CHANGED} LINES] < prediction lines", file=sys.stderr)
        return InputError.exit_code
    names = (
        "scored",
        "failed",
        "duplicates",
        "conflicts",
        "written_digest",
        "duplicates_digest",
        "unreadable_written",
        "carried",
    )
    counts, conflicts = Counter(dict.fromkeys(names, 0)), list[str]()
    try:
        blocks: Iterable[bytes] = read_blocks(sys.stdin.buffer)
        if option:
            blocks = changed(blocks, option[0], counts)
        write(unique(blocks, counts, conflicts), *places)
        counters.report(sys.stderr, **counts)
        if not task.in_job():  # a job's driver does it: to fail here would only make Hadoop try three times more
            refuse(counts, conflicts)
    except PredictionsError as error:
        print(f"reducer.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
