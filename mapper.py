#!/usr/bin/env python3
"""Score records: record lines in, prediction lines out.

    cat part-* | ./mapper.py model.json 20261122T154500Z | LC_ALL=C sort -t$'\\t' -k1,1 -s | ./reducer.py

In:   id TAB feature ... TAB label          (predictions/records.py)
Out:  rowkey TAB prediction TAB probability TAB record TAB scored TAB error   (predictions/schema.py)

The arguments are the model's manifest, with model.skops beside it, and the release for which it scores. The model's
hash, versions and golden records are checked before the first line.
"""

import gc
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from predictions import counters
from predictions.errors import InputError, PredictionsError
from predictions.model import Model, load_model
from predictions.records import fingerprints, read_blocks, split_lines, split_records, write_rows
from predictions.release import scored_at
from predictions.rowkey import row_keys


def score(blocks: Iterable[bytes], model: Model, scored: bytes, counts: Counter[str]) -> Iterator[bytes]:
    """Yield the prediction lines of each block of record lines."""
    for block in blocks:
        try:
            record_ids, features = split_records(block, model.fields)
        except ValueError as error:
            index, found = error.args
            raise InputError(
                f"line {counts['read'] + index + 1} of the split has {found} fields, the model takes {model.fields} "
                f"(ID, features, label): {split_lines(block)[index][:80]!r}"
            ) from None
        scores = model.score(block)
        rows = len(record_ids)
        columns = (
            row_keys(record_ids),
            scores.predictions,
            scores.probabilities,
            fingerprints(features),
            [scored] * rows,
            scores.errors,
        )
        yield write_rows(zip(*columns, strict=True))
        counts.update(read=rows, scored=rows - scores.failed, failed=scores.failed)


def main(*arguments: str) -> int:
    if len(arguments) != 2:
        print("usage: mapper.py MODEL.JSON RELEASE < record lines", file=sys.stderr)
        return InputError.exit_code
    manifest, release = arguments
    counts = Counter(read=0, scored=0, failed=0)
    try:
        model = load_model(Path(manifest))
        gc.freeze()  # what is loaded stays: the collector need not walk through it again and again
        sys.stdout.buffer.writelines(score(read_blocks(sys.stdin.buffer), model, scored_at(release), counts))
    except PredictionsError as error:
        print(f"mapper.py: {error}", file=sys.stderr)
        return error.exit_code
    counters.report(sys.stderr, **counts)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
