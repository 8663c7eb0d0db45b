#!/usr/bin/env python3
"""Keep one prediction for each record ID: prediction lines in, sorted by row key; prediction lines out.

    cat part-* | ./mapper.py model.json 20261122T154500Z | LC_ALL=C sort -t$'\\t' -k1,1 -s | ./reducer.py

In, out: rowkey TAB prediction TAB probability TAB ... TAB record TAB scored TAB error
         (predictions/formats/prediction_line.py)

A record that comes twice is written once. An ID that different records share gets one line without a prediction, with
an `error`. Unreadable lines come last. With either, a pipe ends with an error, and a job's driver refuses the output.

With --score, the input has unscored lines (predictions/formats/unscored.py). A record that the served release of
--current has with the same fingerprint keeps its line there; the others are scored.
"""

import argparse
import gc
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby, islice
from operator import itemgetter, lt
from pathlib import Path

from predictions.errors import InputError, PredictionsError, RefusedError
from predictions.formats import prediction_line, record_line, unreadable
from predictions.formats.id_digest import IdDigest
from predictions.formats.names import scored_at
from predictions.formats.row_key import record_id, record_ids
from predictions.formats.unscored import END_OF_UNSCORED
from predictions.task import environment, script
from predictions.task.current import Current
from predictions.task.region import write_region

EXAMPLES = 5
COUNTERS = (
    *("scored", "failed", "duplicates", "conflicts", "unreadable_written", "carried"),
    *("written_digest", "duplicates_digest"),
)


def one_line_a_key(blocks: Iterable[bytes], counts: Counter[str], examples: list[str]) -> Iterator[bytes]:
    """Yield one line for each row key, block by block; add the first conflicting record IDs to `examples`."""
    last_line = b""  # held back, since the next block may begin with the same row key
    for block in blocks:
        lines, keys = merge_block(last_line + block, counts)
        last_start = lines.rfind(b"\n", 0, -1) + 1
        count_ids(lines[:last_start], keys[:-1], counts, examples)
        yield lines[:last_start]
        last_line = lines[last_start:]
    if last_line:
        count_ids(last_line, [prediction_line.parse_line(last_line).row_key], counts, examples)
        yield last_line


def merge_block(block: bytes, counts: Counter[str]) -> tuple[bytes, Sequence[bytes]]:
    """Return a block with one line for each row key, and its row keys."""
    keys, previous = record_line.first_fields(block, prediction_line.fields_of(block)), b""
    if all(map(lt, keys, keys[1:])):
        return block, keys
    merged: list[tuple[bytes, bytes]] = []
    for key, pairs in groupby(zip(keys, record_line.split_lines(block), strict=True), itemgetter(0)):
        if key <= previous:
            raise InputError(f"row key {key!r} comes after {previous!r}: sort with LC_ALL=C sort -t$'\\t' -k1,1 -s")
        previous = key
        lines = [line for _key, line in pairs]
        if not key.startswith(unreadable.KEY):
            counts["duplicates"] += len(lines) - 1
            counts["duplicates_digest"] += IdDigest.of([record_id(key)]) * (len(lines) - 1)
            lines = [prediction_line.merge(lines)]
        merged += [(key, line) for line in lines]
    return record_line.join_lines(line for _key, line in merged), [key for key, _line in merged]


def count_ids(lines: bytes, keys: Sequence[bytes], counts: Counter[str], examples: list[str]) -> None:
    """Count the IDs of the lines that are written, given with their row keys in order."""
    records = bisect_left(keys, unreadable.KEY)
    counts["conflicts"] += lines.count(prediction_line.END_OF_CONFLICT)
    counts["written_digest"] += IdDigest.of(record_ids(keys[:records]))
    counts["unreadable_written"] += len(keys) - records
    conflicts = (record_id(key).decode(errors="replace") for key in prediction_line.conflicting_keys(lines))
    examples += islice(conflicts, EXAMPLES - len(examples))


def count_predictions(blocks: Iterable[bytes], counts: Counter[str]) -> Iterator[bytes]:
    """Yield blocks of the lines that are written, and count predictions and failures."""
    for block in blocks:
        if END_OF_UNSCORED in block:
            raise InputError("the input has unscored lines; pass --score with a model and --current with a release")
        scored = block.count(prediction_line.END_OF_SCORED)
        counts["scored"] += scored
        counts["failed"] += unreadable.records(block).count(b"\n") - scored
        yield block


def refusal(counts: Counter[str], examples: list[str]) -> PredictionsError | None:
    """Return the reason why the output must not be used, or None."""
    if examples:
        problem = f"the ID is not unique: {counts['conflicts']:,} IDs stand for different records"
        return InputError(f"{problem}, for example {', '.join(examples)}; give each record an ID of its own")
    if counts["unreadable_written"]:
        return RefusedError(f"{counts['unreadable_written']:,} lines could not be read; they come last in the output")
    return None


def late_scorer(model: Path, scored: bytes, region: int) -> Callable[[bytes], bytes]:
    """Return a function that scores a block of record lines, and loads the model when it is first called."""
    # Imported here, since only a job with --changed needs it.
    from predictions.scoring.files import load_models
    from predictions.scoring.predict import Scorer

    @cache
    def scorer() -> Scorer:
        scorer = Scorer(load_models(model), scored, f"region {region}")
        gc.freeze()  # as in the mapper
        return scorer

    return lambda block: scorer().score(block)


def main(*arguments: str) -> int:
    parser = argparse.ArgumentParser("reducer.py", description="Keep one prediction line for each row key.")
    parser.add_argument("--hfiles", metavar="FOLDER", help="also write the region's HFile and comparison to it")
    parser.add_argument("--current", type=Path, metavar="FILE", help="JSON file: where the served release's lines are")
    parser.add_argument(
        "--score",
        nargs=2,
        metavar=("MODEL", "RELEASE"),
        help="keep the served release's lines of unchanged records, and score the others with the model of model.json",
    )
    parser.add_argument("--region", type=int, default=environment.partition(), metavar="N", help="the region's number")
    options = parser.parse_args(arguments)
    if options.score and not options.current:
        parser.error("--score needs --current")
    output = sys.stdout.buffer

    def reduce_input(counts: Counter[str]) -> PredictionsError | None:
        examples: list[str] = []
        served = Current.read(options.current).region(options.region) if options.current else None
        lines = one_line_a_key(record_line.read_blocks(sys.stdin.buffer), counts, examples)
        if served and options.score:
            model, release = options.score
            scored = scored_at(release)
            score = late_scorer(Path(model), scored, options.region)
            lines = served.carry_over(lines, score, scored, counts, comparing=bool(options.hfiles))
        lines = count_predictions(lines, counts)
        if options.hfiles:
            write_region(lines, output, options.hfiles, served)
        else:
            output.writelines(lines)
        # In a job, the driver refuses the output: an error here would only make Hadoop try the task three more times.
        return None if environment.in_job() else refusal(counts, examples)

    return script.run(parser.prog, reduce_input, *COUNTERS)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
