#!/usr/bin/env python3
"""Score records: record lines in, prediction lines out.

    cat part-* | ./mapper.py model.json 20261122T154500Z | LC_ALL=C sort -t$'\\t' -k1,1 -s | ./reducer.py

In:   id TAB feature ... TAB label          (predictions/formats/record_line.py)
Out:  rowkey TAB prediction TAB probability TAB record TAB scored TAB error   (predictions/formats/prediction_line.py)

The arguments are the model's manifest, with model.skops beside it, and the release for which it scores. The model's
hash, versions and golden records are checked before the first line. Every line is answered: a record that cannot be
scored with its `error`, a line that is no record under a key of its own (predictions/formats/unreadable.py).

    ... | ./mapper.py model.json RELEASE MARKS | sort ... | ./reducer.py --changed LINES

With a file of marks of the release that is current (predictions/task/marks.py), only what has changed since is scored;
for the others, the reducer takes that release's lines (predictions/task/carry.py).
"""

import faulthandler
import gc
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from predictions.errors import InputError, InternalError, PredictionsError
from predictions.formats import counters, unreadable
from predictions.formats.names import scored_at
from predictions.formats.record_line import id_digest, read_blocks, split_lines
from predictions.scoring.model import Model, load_model
from predictions.scoring.predict import ChangedOnly, prediction_lines
from predictions.task import environment as task
from predictions.task.marks import Marks


def score(blocks: Iterable[bytes], model: Model, scored: bytes, counts: Counter[str]) -> Iterator[bytes]:
    """Yield the prediction lines of each block of lines."""
    return answer(blocks, model.fields, partial(prediction_lines, model, scored=scored), scored, counts)


def score_changed(
    blocks: Iterable[bytes], model: Model, marks: Marks, scored: bytes, counts: Counter[str]
) -> Iterator[bytes]:
    """Yield the prediction lines of records without a mark, and lines to be filled in for the others."""
    changed = ChangedOnly(model, marks, scored)
    return chain(answer(blocks, model.fields, changed.lines, scored, counts), changed.rest())


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
    if len(arguments) not in (2, 3):
        print("usage: mapper.py MODEL.JSON RELEASE [MARKS] < record lines", file=sys.stderr)
        return InputError.exit_code
    counts = Counter(read=0, unreadable=0, read_digest=0)
    faulthandler.enable()  # a crash in a library leaves at least its stack in the log
    try:
        blocks, scored = read_blocks(sys.stdin.buffer), scored_at(arguments[1])
        model = load_model(Path(arguments[0]))
        gc.freeze()  # what is loaded stays: the collector need not walk through it again and again
        if arguments[2:]:
            lines = score_changed(blocks, model, Marks(Path(arguments[2])), scored, counts)
        else:
            lines = score(blocks, model, scored, counts)
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
