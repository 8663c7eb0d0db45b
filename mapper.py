#!/usr/bin/env python3
"""Score records: record lines in, prediction lines out.

    cat part-* | ./mapper.py model.json 20261122T154500Z | LC_ALL=C sort -t$'\\t' -k1,1 -s | ./reducer.py

In:   id TAB feature ... TAB label          (predictions/records.py)
Out:  rowkey TAB prediction TAB probability TAB record TAB scored TAB error   (predictions/schema.py)

The arguments are the model's manifest, with model.skops beside it, and the release for which it scores. The model's
hash, versions and golden records are checked before the first line. Every line is answered: a record that cannot be
scored with its `error`, a line that is no record under a key of its own (predictions/unreadable.py).
"""

import faulthandler
import gc
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from predictions import counters, faults, task
from predictions.errors import InputError, InternalError, PredictionsError
from predictions.model import Model, Scores, load_model
from predictions.records import SEPARATOR, fingerprints, id_digest, read_blocks, split_lines, write_rows
from predictions.release import scored_at
from predictions.rowkey import row_keys
from predictions.unreadable import Unreadable, prediction_lines, sift

CAREFUL_FROM = 2  # attempts that died before one looks for the record that kills it, at twice the cost


def score(blocks: Iterable[bytes], model: Model, scored: bytes, counts: Counter[str]) -> Iterator[bytes]:
    """Yield the prediction lines of each block of lines."""
    for block in blocks:
        records, record_ids, features, others = sift(block, model.fields)
        if others:
            lines, before = split_lines(block), counts["read"] + 1
            unreadable = (Unreadable(task.split_name(), before + i, others[i], lines[i]) for i in others)
            yield prediction_lines(unreadable, scored)
        counts["read"] += len(record_ids) + len(others)
        counts["unreadable"] += len(others)
        if not record_ids:
            continue
        scores = predict(model, records)
        columns = (
            row_keys(record_ids),
            scores.predictions,
            scores.probabilities,
            fingerprints(features),
            [scored] * len(record_ids),
            scores.errors,
        )
        yield write_rows(zip(*columns, strict=True))
        counts["read_digest"] += id_digest(record_ids)


def predict(model: Model, records: bytes) -> Scores:
    """Score a block of records; where that fails, say for which one."""
    if task.attempt() >= CAREFUL_FROM and (died := faults.killing_signal(model.score, records)):
        line = faults.first_fault(records, lambda lines: faults.killing_signal(model.score, lines) is not None)
        raise InternalError(f"{_place(line)}: scoring it kills the process ({died})")
    try:
        return model.score(records)
    except Exception as error:
        line = faults.first_fault(records, lambda lines: faults.raises(model.score, lines))
        message = " ".join(str(error).split())  # scikit-learn's may have several lines
        raise InternalError(f"{_place(line)}: {type(error).__name__}: {message}") from error


def _place(line: bytes | None) -> str:
    record = f"record {line.partition(SEPARATOR)[0].decode()}" if line else "no single record"
    return f"split {task.split_name()}, {record}"


def main(*arguments: str) -> int:
    if len(arguments) != 2:
        print("usage: mapper.py MODEL.JSON RELEASE < record lines", file=sys.stderr)
        return InputError.exit_code
    manifest, release = arguments
    counts = Counter(read=0, unreadable=0, read_digest=0)
    faulthandler.enable()  # a crash in a library leaves at least its stack in the log
    try:
        model = load_model(Path(manifest))
        gc.freeze()  # what is loaded stays: the collector need not walk through it again and again
        sys.stdout.buffer.writelines(score(read_blocks(sys.stdin.buffer), model, scored_at(release), counts))
    except PredictionsError as error:
        if error.__cause__ and isinstance(error, InternalError):
            traceback.print_exception(error.__cause__)
        print(f"mapper.py: {error}", file=sys.stderr)
        return error.exit_code
    counters.report(sys.stderr, **counts)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
