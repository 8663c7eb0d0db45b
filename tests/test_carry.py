"""Scoring only the changed records gives the same lines as scoring all, except for the time of scoring."""

import io
import json
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import badmodels
import pytest
from conftest import make_orders, manifest_of, replace_export
from hypothesis import given
from hypothesis import strategies as st
from inprocess import script, without

import mapper
import reducer
from predictions.comparison.comparison import Comparisons, compare
from predictions.errors import InputError, InternalError
from predictions.formats.document import to_file
from predictions.formats.names import scored_at
from predictions.formats.prediction_line import not_unique, parse_line
from predictions.formats.record_line import (
    Column,
    escape,
    feature_fields,
    field_ends,
    fingerprints,
    first_fields,
    read_blocks,
    split_lines,
    write_rows,
)
from predictions.formats.row_key import record_id
from predictions.formats.unreadable import Unreadable, prediction_lines
from predictions.formats.unscored import record_lines, unscored_lines
from predictions.scoring.files import load_model
from predictions.scoring.predict import Scorer
from predictions.settings import load_settings
from predictions.stages.compare import compared_labels
from predictions.stages.export import export
from predictions.stages.score import score, take_models
from predictions.stages.train import train
from predictions.storage import Storage
from predictions.task import carry
from predictions.task.carry import carry_over
from predictions.task.current import Current
from reducer import count_predictions, one_line_a_key

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
    take_models(folder, first)
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
        take_models(third, second)
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


SCORED_AT = b"7"


def mapped_of(folder):
    """Return the unscored lines of a release, sorted, and how many lines the mapper read."""
    blocks = [line + b"\n" for line in split_lines(blocks_of(folder, "export"))]
    counts = Counter()
    split = mapper.Split("stdin", 5, SCORED_AT)
    mapped = b"".join(mapper.map_records(blocks, split, partial(mapper.pass_on, split=split), counts))
    lines = sorted(split_lines(mapped))
    assert counts["read"] == len(lines) == len(blocks)
    return lines


def join(lines, served, score, size=1 << 20, **options):
    """Return the lines that a reducer writes, without line feeds, and its counters."""
    counts = Counter(carried=0)
    blocks = one_line_a_key(read_blocks(io.BytesIO(b"".join(line + b"\n" for line in lines)), size), counts, [])
    served_blocks = read_blocks(io.BytesIO(served), max(size // 2, 1))
    carried = carry_over(blocks, served_blocks, score, SCORED_AT, counts, **options)
    return split_lines(b"".join(count_predictions(carried, counts))), counts


def refuse(_block):
    raise AssertionError("nothing has changed")


@pytest.mark.parametrize("limit", ["BLOCK_BYTES", "WAITING_BYTES", None])
def test_only_changed_records_are_scored(project, second, monkeypatch, limit):
    _settings, _storage, first = project
    if limit:
        monkeypatch.setattr(carry, limit, 1)
    model = load_model(Path(second.path, "model", "model.json"))
    scored_counts = []

    def score(block):
        scored_counts.append(block.count(b"\n"))
        return Scorer(model, SCORED_AT, "region 0").score(block)

    lines, served = mapped_of(second), blocks_of(first, "scored")
    results = []
    for size in (100, 3_000, 1 << 20):
        scored_counts.clear()
        result, counts = join(lines, served, score, size)
        results.append(result)
        assert sum(scored_counts) == NEW + CHANGED + 1
        assert counts["carried"] == len(lines) - sum(scored_counts)
        assert (counts["scored"], counts["failed"]) == (len(lines) - 1, 1)
        # Changed records of many blocks go to the model together, unless too much would wait.
        assert len(scored_counts) == 1 or (limit and size < 1 << 20)
    assert results[0] == results[1] == results[2]
    assert [line.partition(b"\t")[0] for line in results[0]] == [line.partition(b"\t")[0] for line in lines]


def test_a_reducer_that_gets_no_model_refuses_unscored_lines(second):
    with pytest.raises(InputError, match="the input has unscored lines; pass --score"):
        list(count_predictions([line + b"\n" for line in mapped_of(second)], Counter()))


def test_unscored_lines_are_kept_with_a_test_vector():
    block = b"42\tUA\ta\\tb\t\\N\t\\\\\t1\n"
    line = b"3224:42\t\\N\tUA\\ta\\\\tb\\t\\\\N\\t\\\\\\\\\t%b\t\\N\t\\N\n"
    [fingerprint] = fingerprints([b"UA\ta\\tb\t\\N\t\\\\"])
    assert unscored_lines(block, field_ends(block, 6), [b"42"]) == line % fingerprint
    parsed = parse_line(line % fingerprint)
    assert record_lines([(parsed.row_key, parsed.probability)]) == block[:-2] + b"\\N\n"


def test_an_unscored_line_has_no_carriage_return_at_which_streaming_would_end_it():
    block = b"42\tU\rA\t\\r\t1\n"
    lines = unscored_lines(block, field_ends(block, 4), [b"42"])
    assert b"\r" not in lines
    line = parse_line(lines)
    assert record_lines([(line.row_key, line.probability)]) == block[:-2] + b"\\N\n"


@given(st.lists(st.lists(st.text(), min_size=3, max_size=3), min_size=1))
def test_an_unscored_line_has_the_features_of_any_record(rows):
    texts = [[escape(text.encode()) for text in row] for row in rows]
    block = write_rows([b"%d" % number, *fields, b"1"] for number, fields in enumerate(texts))
    ends = field_ends(block, 5)
    lines = list(map(parse_line, split_lines(unscored_lines(block, ends, first_fields(block, ends)))))
    assert [line.record for line in lines] == fingerprints(feature_fields(block, ends))
    restored = record_lines((line.row_key, line.probability) for line in lines)
    assert restored == write_rows([b"%d" % number, *fields, b"\\N"] for number, fields in enumerate(texts))


@pytest.mark.parametrize("field", ["row_key", "record"])
def test_a_line_is_kept_only_if_row_key_and_fingerprint_are_the_same(project, field):
    current = blocks_of(project[2], "scored")
    lines = mapped_of(project[2])
    assert join(lines, current, refuse)[0] == split_lines(current)
    line = parse_line(lines[3])
    other = line._replace(**{field: getattr(line, field)[:-1] + b"~"})
    scored = []

    def score(block):
        scored.append(block)
        return b"%b\t1\t1\t0\t7\t\\N\n" % other.row_key

    join([other.join()], current, score)
    assert scored == [record_lines([(other.row_key, line.probability)])]


@pytest.mark.parametrize("gone", [0, 7])
def test_the_same_pass_compares_the_releases(project, second, gone):
    """Whatever the blocks, it counts what a comparison of the written lines counts."""
    _settings, _storage, first = project
    lines, served = mapped_of(second), blocks_of(first, "scored")
    if gone:
        lines = lines[::gone]
    scorer = Scorer(load_model(Path(second.path, "model", "model.json")), SCORED_AT, "region 0")
    for size in (100, 3_000, 1 << 20):
        comparison = Comparisons(compared_labels(first, first))
        written, _counts = join(lines, served, scorer.score, size, comparison=comparison)
        expected = compare([served], [b"".join(line + b"\n" for line in written)], compared_labels(first, first))
        assert rounded(comparison) == rounded(expected)
        [only] = comparison.each
        assert (only.before.rows, only.after.rows) == (400, len(lines))
        assert only.gone >= GONE - 1
        assert only.appeared > 0


def rounded(comparison):
    # The sum of the scores depends on the blocks in its last digits.
    return json.loads(json.dumps(comparison.as_json()), parse_float=lambda text: round(float(text), 9))


@pytest.mark.parametrize("rest", ["unchanged", "gone"])
def test_little_waits_for_a_record_to_be_scored(project, monkeypatch, rest):
    """One record has changed; the lines after it do not pile up until there is more to score."""
    limit = 1000
    monkeypatch.setattr(carry, "WAITING_BYTES", limit)
    lines, served = mapped_of(project[2]), split_lines(blocks_of(project[2], "scored"))
    changed = parse_line(lines[0])
    lines[0] = changed._replace(record=b"0" * 16).join()
    waiting = []
    read = 0

    def reading():
        nonlocal read
        for line in served:
            read += len(line) + 1
            yield line + b"\n"

    def score(_block):
        waiting.append(read)
        return b"%b\t1\t0.5\t%b\t7\t\\N\n" % (changed.row_key, b"0" * 16)

    blocks = [line + b"\n" for line in (lines if rest == "unchanged" else lines[:1])]
    comparison = Comparisons(compared_labels(project[2], project[2]))
    written = list(carry_over(blocks, reading(), score, SCORED_AT, Counter(), comparison))
    assert len(written) == len(blocks)
    [most] = waiting
    assert abs(limit - most) < 3 * max(map(len, served)) < read - limit


def test_a_model_for_other_columns_is_not_taken(project, second):
    manifest = manifest_of(second)
    second.write_manifest(replace(manifest, features=manifest.features[:2]))
    second.remove("model")
    with pytest.raises(InputError, match=r"the model of release .* takes .*items.*: train another model"):
        take_models(second, project[2])
    assert not second.has("model")


def test_a_model_for_another_label_is_not_taken(project, second):
    manifest = manifest_of(second)
    second.write_manifest(replace(manifest, label=Column("note", "text")))
    second.remove("model")
    with pytest.raises(
        InputError, match=r"and the label paid \(integer\), but .* the label note \(text\) were exported"
    ):
        take_models(second, project[2])


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


def test_a_record_that_comes_twice_keeps_its_line_once(project):
    current = blocks_of(project[2], "scored")
    lines = [line for line in mapped_of(project[2]) for _time in range(2)]
    for size in (1, 1000):
        written, counts = join(lines, current, refuse, size)
        assert written == split_lines(current)
        assert (counts["carried"], counts["duplicates"]) == (400, 400)


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 0)])
def test_an_id_for_different_records_is_a_conflict_though_one_is_unchanged(project, order):
    """It gets the line of a full run, even if its fingerprint there is that of the unchanged record."""
    current = blocks_of(project[2], "scored")
    lines = mapped_of(project[2])
    unchanged = parse_line(lines[5])
    for record in (b"0" * 16, b"f" * 16):
        both = lines[5], unchanged._replace(record=record).join()
        written, counts = join([*lines[:5], *(both[number] for number in order), *lines[6:]], current, refuse)
        assert (counts["conflicts"], counts["failed"], counts["carried"]) == (1, 1, 399)
        conflict = not_unique(unchanged._replace(record=min(record, unchanged.record), scored=SCORED_AT))
        assert written[5] == conflict
        assert [*written[:5], *written[6:]] == [
            line for line in split_lines(current) if line != split_lines(current)[5]
        ]


def test_unreadable_lines_and_lines_with_a_prediction_pass(project):
    current = blocks_of(project[2], "scored")
    lines, served = mapped_of(project[2]), split_lines(current)
    scored = served[5].replace(b"\t\\N", b"\tanother error")
    unreadable = split_lines(prediction_lines([Unreadable("stdin", 7, "the ID is empty", b"\tx")], SCORED_AT))
    written, counts = join([*lines[:5], scored, *lines[6:], *unreadable], current, refuse)
    assert written == [*served[:5], scored, *served[6:], *unreadable]
    assert (counts["carried"], counts["unreadable_written"]) == (399, 1)


def reduce_script(folder, model, stdin, served, tmp_path, **environment):
    (tmp_path / "served").write_bytes(served)
    current = Current.of(folder.release, compared_labels(folder, folder), [], [str(tmp_path / "served")], [])
    (tmp_path / "current.json").write_bytes(to_file(current))
    options = ["--current", tmp_path / "current.json", "--score", model, "20261122T154500Z"]
    return script(reducer.main, *options, stdin=stdin, **environment)


def test_the_model_is_loaded_once_a_record_needs_it(project, tmp_path):
    folder = project[2]
    stdin, served = b"".join(line + b"\n" for line in mapped_of(folder)), blocks_of(folder, "scored")
    ended = reduce_script(folder, tmp_path / "missing" / "model.json", stdin, served, tmp_path)
    assert (ended.returncode, ended.stdout) == (0, served)
    rest = served[served.index(b"\n") + 1 :]
    ended = reduce_script(folder, tmp_path / "missing" / "model.json", stdin, rest, tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.endswith(b"missing/model.json: No such file or directory; `predictions train` writes it\n")
    ended = reduce_script(folder, Path(folder.path, "model", "model.json"), stdin, rest, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith(b"\n" + rest)
    assert b"predictions,carried,399" in ended.stderr


def test_a_model_for_other_columns_than_the_mappers_is_named(project, tmp_path):
    folder = project[2]
    stdin = unscored_lines(b"1\tAT\t5\t0\n", field_ends(b"1\tAT\t5\t0\n", 4), [b"1"])
    ended = reduce_script(folder, Path(folder.path, "model", "model.json"), stdin, b"", tmp_path)
    assert ended.returncode == 2
    assert b"reducer.py: region 0: a record has 4 fields, but the model takes 5: give" in ended.stderr


@pytest.mark.parametrize("attempt", [0, 2])
def test_the_record_at_which_the_model_raises_is_named_with_its_region(project, tmp_path, attempt):
    model, unknown = tmp_path / "model.json", badmodels.raising(tmp_path)
    block = unknown + b"\n"
    stdin = unscored_lines(block, field_ends(block, 5), [b"unknown"])
    environment = {
        "mapreduce_task_attempt_id": f"attempt_1_0001_r_000000_{attempt}",
        "mapreduce_task_partition": "0",
    }
    ended = reduce_script(project[2], model, stdin, b"", tmp_path, **environment)
    assert ended.returncode == 6
    assert b"reducer.py: region 0, record unknown: ValueError: Found unknown categories" in ended.stderr


def test_scoring_needs_a_served_release():
    ended = script(reducer.main, "--score", "model.json", "20261122T154500Z")
    assert (ended.returncode, b"--score needs --current" in ended.stderr) == (2, True)
