#!/usr/bin/env python3
"""Score records: record lines in, prediction lines out.

    cat part-* | ./mapper.py model.json 20261122T154500Z | LC_ALL=C sort -t$'\\t' -k1,1 -s | ./reducer.py

In:   id TAB feature ... TAB label                                            (predictions/formats/record_line.py)
Out:  rowkey TAB prediction TAB probability TAB ... TAB record TAB scored TAB error
                                                                              (predictions/formats/prediction_line.py)

Before the first line, the model's hash, its library versions and its golden records are checked. A record that the
model cannot score gets a prediction line with an `error`. An input line that is not a record gets one with a key of its
own (predictions/formats/unreadable.py). With --unscored, no model is loaded: records become unscored lines
(predictions/formats/unscored.py), of which the reducer scores those that have changed.
"""

import argparse
import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from predictions.formats.id_digest import IdDigest
from predictions.formats.names import scored_at
from predictions.formats.prediction_line import COLUMNS, block_bytes
from predictions.formats.record_line import read_blocks
from predictions.formats.unreadable import Sifted, prediction_lines, sift
from predictions.formats.unscored import unscored_lines
from predictions.scoring.files import load_models, read_models
from predictions.scoring.predict import Scorer
from predictions.task import environment, script


class Split(NamedTuple):
    """The mapper's input, and what it has to know of it.

    Args:
        name: its name.
        fields: number of fields of a record line.
        scored: the time of the lines that are written.
        cells: number of their cells.
        labels: number of labels in a record line.
    """

    name: str
    fields: int
    scored: bytes
    cells: int = len(COLUMNS)
    labels: int = 1


def map_records(
    blocks: Iterable[bytes], split: Split, lines: Callable[[Sifted], bytes], counts: Counter[str]
) -> Iterator[bytes]:
    """Yield prediction lines for blocks of record lines; `lines` returns those of a block's records."""
    for block in blocks:
        records = sift(block, split.fields, split.name, counts["read"] + 1)
        if records.unreadable:
            yield prediction_lines(records.unreadable, split.scored, split.cells)
        if records.record_ids:
            yield lines(records)
        counts["read"] += len(records.record_ids) + len(records.unreadable)
        counts["read_digest"] += IdDigest.of(records.record_ids)
        counts["unreadable"] += len(records.unreadable)


def pass_on(records: Sifted, split: Split) -> bytes:
    """Return the unscored lines of a block's records."""
    return unscored_lines(records.block, records.ends, records.record_ids, split.cells, split.labels)


def main(*arguments: str) -> int:
    parser = argparse.ArgumentParser("mapper.py", description="Score records: record lines in, prediction lines out.")
    parser.add_argument("model", type=Path, metavar="MODEL", help="model.json, with the model's file in its folder")
    parser.add_argument("release", metavar="RELEASE", help="ID of the release that the predictions are for")
    parser.add_argument("--unscored", action="store_true", help="score nothing: reducer.py --score does")
    parser.add_argument("--split", default=environment.split_name(), metavar="NAME", help="input's name in messages")
    options = parser.parse_args(arguments)
    output = sys.stdout.buffer

    def map_input(counts: Counter[str]) -> None:
        scored = scored_at(options.release)
        models = read_models(options.model)
        split = Split(options.split, models.fields, scored, len(models.columns), len(models.each))
        if options.unscored:
            lines: Callable[[Sifted], bytes] = partial(pass_on, split=split)
        else:
            scorer = Scorer(load_models(options.model), scored, f"split {options.split}")
            gc.freeze()  # the model stays in memory: spare the garbage collector from walking through it
            lines = scorer.lines
        blocks = read_blocks(sys.stdin.buffer, block_bytes(len(models.columns)))
        output.writelines(map_records(blocks, split, lines, counts))

    return script.run(parser.prog, map_input, "read", "unreadable", "read_digest")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
