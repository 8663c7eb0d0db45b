#!/usr/bin/env python3
"""Score records: record lines in, prediction lines out.

    cat part-* | ./mapper.py model.json 20261122T154500Z | LC_ALL=C sort -t$'\\t' -k1,1 -s | ./reducer.py

In:   id TAB feature ... TAB label                                            (predictions/formats/record_line.py)
Out:  rowkey TAB prediction TAB probability TAB record TAB scored TAB error   (predictions/formats/prediction_line.py)

Before the first line, the model's hash, its library versions and its golden records are checked. A record that the
model cannot score gets a prediction line with an `error`. An input line that is not a record gets one with a key of its
own (predictions/formats/unreadable.py).
"""

import argparse
import gc
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from predictions.formats.id_digest import IdDigest
from predictions.formats.names import scored_at
from predictions.formats.record_line import read_blocks
from predictions.formats.unreadable import prediction_lines, sift
from predictions.scoring.files import load_model
from predictions.scoring.predict import Scorer
from predictions.task import environment, script
from predictions.task.marks import Marks


def score(blocks: Iterable[bytes], scorer: Scorer, counts: Counter[str]) -> Iterator[bytes]:
    """Yield prediction lines for blocks of record lines."""
    for block in blocks:
        records = sift(block, scorer.model.fields, scorer.split, counts["read"] + 1)
        if records.unreadable:
            yield prediction_lines(records.unreadable, scorer.scored)
        if records.record_ids:
            yield scorer.lines(records)
        counts["read"] += len(records.record_ids) + len(records.unreadable)
        counts["read_digest"] += IdDigest.of(records.record_ids)
        counts["unreadable"] += len(records.unreadable)
    yield from scorer.rest()  # with --marks, changed records are collected into larger blocks


def main(*arguments: str) -> int:
    parser = argparse.ArgumentParser("mapper.py", description="Score records: record lines in, prediction lines out.")
    parser.add_argument("model", type=Path, metavar="MODEL", help="model.json, with the model's file in its folder")
    parser.add_argument("release", metavar="RELEASE", help="ID of the release that the predictions are for")
    parser.add_argument("--marks", type=Path, metavar="FILE", help="do not score records with a mark in FILE")
    parser.add_argument("--split", default=environment.split_name(), metavar="NAME", help="input's name in messages")
    options = parser.parse_args(arguments)

    def score_input(counts: Counter[str]) -> None:
        marks = Marks(options.marks) if options.marks else None
        scorer = Scorer(load_model(options.model), scored_at(options.release), options.split, marks)
        gc.freeze()  # the model stays in memory: spare the garbage collector from walking through it
        sys.stdout.buffer.writelines(score(read_blocks(sys.stdin.buffer), scorer, counts))

    return script.run(parser.prog, score_input, "read", "unreadable", "read_digest")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
