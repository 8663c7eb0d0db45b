#!/usr/bin/env python3
"""Score records: record lines in, prediction lines out.

    cat part-* | ./mapper.py model.json 20261122T154500Z | LC_ALL=C sort -t$'\\t' -k1,1 -s | ./reducer.py

In:   id TAB feature ... TAB label          (predictions/records.py)
Out:  rowkey TAB prediction TAB probability TAB record TAB scored TAB error   (predictions/schema.py)

The arguments are the model's manifest, with model.skops beside it, and the release for which it scores. The model's
hash, versions and golden records are checked before the first line. Every line is answered: a record that cannot be
scored with its `error`, a line that is no record under a key of its own (predictions/unreadable.py).

    ... | ./mapper.py model.json RELEASE keyed | sort ... | ./reducer.py --changed LINES model.json RELEASE

The records are passed on unscored, for the reducer to score those that changed (predictions/carry.py).
"""

import faulthandler
import gc
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from predictions import counters, task, unreadable
from predictions.carry import keyed_lines
from predictions.errors import InputError, InternalError, PredictionsError
from predictions.model import Model, fields_of, load_model, read_manifest
from predictions.records import id_digest, read_blocks, split_lines
from predictions.release import scored_at
from predictions.scoring import prediction_lines


def score(blocks: Iterable[bytes], model: Model, scored: bytes, counts: Counter[str]) -> Iterator[bytes]:
    """Yield the prediction lines of each block of lines."""
    return answer(blocks, model.fields, partial(prediction_lines, model, scored=scored), scored, counts)


def answer(
    blocks: Iterable[bytes],
    fields: int,
    of_records: Callable[[bytes, list[bytes], list[bytes]], bytes],
    scored: bytes,
    counts: Counter[str],
) -> Iterator[bytes]:
    """Yield the lines that answer each block of lines: those of its records, and those of what could not be read."""
    for block in blocks:
        records, record_ids, features, others = unreadable.sift(block, fields)
        if others:
            lines, before = split_lines(block), counts["read"] + 1
            found = (unreadable.Unreadable(task.split_name(), before + i, others[i], lines[i]) for i in others)
            yield unreadable.prediction_lines(found, scored)
        counts["read"] += len(record_ids) + len(others)
        counts["unreadable"] += len(others)
        if record_ids:
            yield of_records(records, record_ids, features)
            counts["read_digest"] += id_digest(record_ids)


def main(*arguments: str) -> int:
    if len(arguments) not in (2, 3) or arguments[2:] not in ((), (task.KEYED,)):
        print(f"usage: mapper.py MODEL.JSON RELEASE [{task.KEYED}] < record lines", file=sys.stderr)
        return InputError.exit_code
    path = Path(arguments[0])
    counts = Counter(read=0, unreadable=0, read_digest=0)
    faulthandler.enable()  # a crash in a library leaves at least its stack in the log
    try:
        blocks, scored = read_blocks(sys.stdin.buffer), scored_at(arguments[1])
        if arguments[2:]:
            fields = fields_of(read_manifest(path))
            lines = answer(blocks, fields, lambda records, ids, _features: keyed_lines(records, ids), scored, counts)
        else:
            lines = score(blocks, load_model(path), scored, counts)
            gc.freeze()  # what is loaded stays: the collector need not walk through it again and again
        sys.stdout.buffer.writelines(lines)
    except PredictionsError as error:
        if error.__cause__ and isinstance(error, InternalError):
            traceback.print_exception(error.__cause__)
        print(f"mapper.py: {error}", file=sys.stderr)
        return error.exit_code
    counters.report(sys.stderr, **counts)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
