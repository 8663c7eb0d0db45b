"""Scoring only the changed records gives the same lines as scoring all, except for the time of scoring."""

import io
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_orders, manifest_of, replace_export
from inprocess import without

import mapper
from predictions.errors import InputError, InternalError
from predictions.formats.names import scored_at
from predictions.formats.prediction_line import parse_line
from predictions.formats.record_line import (
    Column,
    feature_fields,
    field_ends,
    fingerprints,
    first_fields,
    read_blocks,
    split_lines,
)
from predictions.formats.row_key import record_id, row_keys
from predictions.scoring import predict as scoring
from predictions.scoring.files import load_model
from predictions.scoring.predict import Scorer
from predictions.settings import load_settings
from predictions.stages.export import export
from predictions.stages.score import score, take_model
from predictions.stages.train import train
from predictions.storage import Storage
from predictions.task import carry, marks
from reducer import one_line_a_key

GONE, NEW, CHANGED = 10, 9, 7  # of the 400 orders; of eight changed ones, one has no amount and so stays the same


def quiet(*_arguments):
    pass


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = make_orders(tmp_path_factory.mktemp("carry"))
    settings = load_settings(folder / "predictions.toml")
    storage = Storage(settings.hadoop.storage, settings.name)
    first = export(settings, storage, quiet, quiet)
    with without():
        train(settings, first, quiet)
        score(settings, first, "pipe", quiet)
    with closing(sqlite3.connect(folder / "orders.db")) as connection, connection:
        connection.execute("UPDATE orders SET amount = amount + 100 WHERE rowid % 50 = 0")  # changed
        connection.execute("UPDATE orders SET paid = 1 WHERE rowid % 7 = 0")  # the label alone: not changed
        connection.execute("DELETE FROM orders WHERE rowid % 40 = 1")
        connection.execute(
            "INSERT INTO orders SELECT 'new-' || id, country, amount, items, paid, note FROM orders LIMIT 9"
        )
        connection.execute("UPDATE orders SET amount = 'twelve' WHERE rowid = 33")  # cannot be scored
    return settings, storage, first


@pytest.fixture
def second(project):
    """A release of the changed database, with the model of the first release."""
    settings, storage, first = project
    folder = export(settings, storage, quiet, quiet)
    take_model(folder, first)
    yield folder
    shutil.rmtree(folder.path)


def lines_of(folder):
    lines = [line for path in folder.files("scored") for block in folder.blocks(path) for line in split_lines(block)]
    return {record_id(line.partition(b"\t")[0]): parse_line(line) for line in lines}


def score_again(settings, folder, runner, *current, processes=False):
    """Score a release anew, and return the counts and the lines."""
    folder.remove("scored")
    folder.write_manifest(replace(manifest_of(folder), scored=None))
    with without(processes):
        return score(settings, folder, runner, quiet, *current), lines_of(folder)


@pytest.mark.parametrize(
    ("runner", "regions", "processes"),
    [*[("pipe", 1, True), ("local", 4, True)], *[("local", regions, False) for regions in (1, 4, 7)]],
)
def test_it_equals_a_full_run_but_for_the_time_of_scoring(project, second, runner, regions, processes):
    settings, _storage, first = project
    settings = settings.model_copy(update={"hbase": settings.hbase.model_copy(update={"regions": regions})})
    full_counts, full_lines = score_again(settings, second, runner)
    counts, lines = score_again(settings, second, runner, first, True, processes=processes)
    first_lines = lines_of(first)
    assert full_counts.carried == 0
    assert [line._replace(scored=b"") for line in lines.values()] == [
        line._replace(scored=b"") for line in full_lines.values()
    ]
    carried = {name for name, line in lines.items() if name in first_lines and line.record == first_lines[name].record}
    assert counts.carried == len(carried) == 400 - GONE - CHANGED - 1
    times = {name: line.scored for name, line in lines.items()}
    first_time, second_time = scored_at(first.release), scored_at(second.release)
    assert times == {name: first_time if name in carried else second_time for name in lines}
    assert counts.carried_from == first.release
    for name in ("read", "scored", "failed", "rows", "id_digest", "duplicates_digest"):
        assert getattr(counts, name) == getattr(full_counts, name)


def test_failed_records_are_carried_over_too(project, second):
    settings, storage, first = project
    score_again(settings, second, "pipe", first, True)
    third = export(settings, storage, quiet, quiet)
    try:
        take_model(third, second)
        counts, lines = score_again(settings, third, "pipe", second, True)
        assert counts.carried == counts.rows == len(lines)
        assert counts.failed == 1
        assert lines == lines_of(second)
    finally:
        shutil.rmtree(third.path)


def test_duplicates_and_conflicts_are_found_as_in_a_full_run(project, second):
    settings, _storage, first = project
    lines = [line for path in second.files("export") for block in second.blocks(path) for line in split_lines(block)]
    replace_export(second, [[*lines, lines[0], lines[49], lines[399 - 20]]])
    counts, _lines = score_again(settings, second, "pipe", first, True)
    assert counts.duplicates == 3
    conflict = lines[5].rsplit(b"\t", 2)[0] + b"\t77\t0"
    replace_export(second, [[*lines, conflict]])
    with pytest.raises(InputError, match="the ID is not unique: 1 IDs stand for different records"):
        score_again(settings, second, "pipe", first, True)


def blocks_of(folder, part):
    return b"".join(block for path in folder.files(part) for block in folder.blocks(path))


@pytest.fixture
def first_marks(project, tmp_path):
    """The marks of the first release."""
    path = tmp_path / "marks"
    path.write_bytes(marks.marks_of([blocks_of(project[2], "scored")]))
    return marks.Marks(path)


@pytest.mark.parametrize("batch", [1, 1 << 20])
def test_only_changed_records_are_scored(project, second, first_marks, monkeypatch, batch):
    _settings, _storage, first = project
    monkeypatch.setattr(scoring, "BLOCK_BYTES", batch)
    model = load_model(Path(second.path, "model", "model.json"))
    scored_counts = []
    score_block = model.score
    monkeypatch.setattr(model, "score", lambda block: scored_counts.append(block.count(b"\n")) or score_block(block))
    blocks = [line + b"\n" for line in split_lines(blocks_of(second, "export"))]
    counts = Counter()
    mapped = b"".join(mapper.score(blocks, Scorer(model, b"7", "stdin", first_marks), counts))
    assert sum(scored_counts) == NEW + CHANGED + 1
    # Changed records of many blocks go to the model together.
    assert len(scored_counts) == (1 if batch > 1 else sum(scored_counts))
    assert counts["read"] == len(blocks) == len(split_lines(mapped))
    ordered = b"".join(line + b"\n" for line in sorted(split_lines(mapped)))
    current = blocks_of(first, "scored")
    results = []
    for size in (100, 3_000, 1 << 20):
        counts = Counter(carried=0)
        sides = read_blocks(io.BytesIO(ordered), size), read_blocks(io.BytesIO(current), size // 2)
        results.append(b"".join(carry.carry_over(*sides, counts)))
        assert counts["carried"] == len(blocks) - sum(scored_counts)
    assert results[0] == results[1] == results[2]
    assert not any(line.endswith(b"\t\\N\t\\N") for line in split_lines(results[0]))  # no line is left unscored
    with pytest.raises(InputError, match="the input has unscored lines; pass --current"):
        list(one_line_a_key([ordered], Counter(), []))


def test_a_mark_is_of_the_row_key_and_of_the_fingerprint(first_marks, project):
    lines = blocks_of(project[2], "export")
    ends = field_ends(lines, 5)
    ids = first_fields(lines, ends)
    keys, prints = row_keys(ids), fingerprints(feature_fields(lines, ends))
    assert first_marks.have(keys, prints).all()
    assert not first_marks.have(keys, [*prints[1:], prints[0]]).any()
    assert not first_marks.have(row_keys([name + b"x" for name in ids]), prints).any()


def test_marks_are_kept_with_test_vectors():
    """A mark is the CRC (8359, e8b7), then the upper 48 bits of xxh3_64(b"8359:1\t4907185d0406025b") and so on."""
    assert marks.marks_of([]) == b""
    lines = b"e8b7:42\t1\t0.5\tb8e4428ef77c16b4\t7\t\\N\n8359:1\t0\t0.5\t4907185d0406025b\t7\t\\N\n"
    assert marks.marks_of([lines]).hex(" ", 8) == "9631265ac5c45983 855e89474aa6b7e8"
    assert marks.marks_of(read_blocks(io.BytesIO(lines), 1)) == marks.marks_of([lines])


def test_a_release_without_records_has_no_marks(tmp_path):
    path = tmp_path / "marks"
    path.write_bytes(b"")
    assert marks.Marks(path).have([b"e8b7:42"], [b"b8e4428ef77c16b4"]).tolist() == [False]


@pytest.mark.parametrize("data", [None, b"\0" * 9])
def test_marks_that_are_not_there_or_cut_off_are_refused(tmp_path, data):
    path = tmp_path / "marks"
    if data:
        path.write_bytes(data)
    with pytest.raises(InputError, match="cannot read the file of marks"):
        marks.Marks(path)


def test_a_mark_that_belongs_to_another_record_ends_the_run(project):
    """If two records share a mark, the row key or the fingerprint of the second differs: no wrong line is written."""
    current = blocks_of(project[2], "scored")
    key, _prediction, _probability, record, *_rest = split_lines(current)[3].split(b"\t")
    for line in carry.unscored_lines([key, key + b"x"], [b"0" * 16, record]):
        with pytest.raises(InternalError, match=r"record .*: it has a mark, but .*\(without --changed\)"):
            list(carry.carry_over([line + b"\n"], [current], Counter()))


def test_a_model_for_other_columns_is_not_taken(project, second):
    manifest = manifest_of(second)
    second.write_manifest(replace(manifest, features=manifest.features[:2]))
    second.remove("model")
    with pytest.raises(InputError, match=r"the model of release .* takes .*items.*: train another model"):
        take_model(second, project[2])
    assert not second.has("model")


def test_a_model_for_another_label_is_not_taken(project, second):
    manifest = manifest_of(second)
    second.write_manifest(replace(manifest, label=Column("note", "text")))
    second.remove("model")
    with pytest.raises(
        InputError, match=r"and the label paid \(integer\), but .* the label note \(text\) were exported"
    ):
        take_model(second, project[2])


def test_only_a_blocks_lines_of_the_served_release_are_held(project):
    current = blocks_of(project[2], "scored")
    lines = carry._ServedLines(read_blocks(io.BytesIO(current), 1000))
    last = parse_line(split_lines(current)[-1])
    [wanted] = carry.unscored_lines([last.row_key], [last.record])
    assert lines.read_until(last.row_key, {wanted}).keys() == {wanted}


def test_a_release_whose_lines_are_damaged_ends_the_run(project, second, tmp_path):
    settings, storage, first = project
    damaged = storage.new_release()
    try:
        shutil.copytree(first.path, damaged.path, dirs_exist_ok=True)
        path = damaged.part("scored", 0)
        with open(path, "ab") as file:
            file.write(b"ffff:x\tcut off\n")
        with pytest.raises((InternalError, InputError), match="a prediction line has 6 fields, but this one has 2"):
            score_again(settings, second, "pipe", damaged, True, processes=True)
    finally:
        shutil.rmtree(damaged.path)


def test_a_record_that_comes_twice_keeps_its_line_twice(project):
    current = blocks_of(project[2], "scored")
    parsed_lines = list(map(parse_line, split_lines(current)))
    unscored = carry.unscored_lines([line.row_key for line in parsed_lines], [line.record for line in parsed_lines])
    unscored_blocks = [line + b"\n" for line in unscored for _time in range(2)]  # each line is a block
    counts = Counter(carried=0)
    current_blocks = [line + b"\n" for line in split_lines(current)]
    assert split_lines(b"".join(carry.carry_over(unscored_blocks, current_blocks, counts))) == [
        line for line in split_lines(current) for _time in range(2)
    ]
    assert counts["carried"] == 800


def test_lines_of_one_row_key_may_be_scored_and_not(project):
    """Two records with one ID, one of them unchanged, in different blocks: the reducer reports the conflict later."""
    current = blocks_of(project[2], "scored")
    served_line = parse_line(split_lines(current)[5])
    [unscored] = carry.unscored_lines([served_line.row_key], [served_line.record])
    scored = b"\t".join(served_line._replace(record=b"0" * 16))
    for order in ([unscored, scored, unscored], [scored, unscored, scored]):
        carried = b"".join(carry.carry_over([line + b"\n" for line in order], [current], Counter()))
        assert split_lines(carried) == [split_lines(current)[5] if line == unscored else line for line in order]
