"""The two scripts as processes, as Hadoop runs them: through links, in a folder without the package.

Most tests call the scripts in the test's process, which has imported scikit-learn already.
"""

import io
import os
import random
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from sysconfig import get_path

import numpy as np
import pytest
from conftest import CHECKOUT
from hypothesis import given
from hypothesis import strategies as st
from inprocess import script
from sklearn.dummy import DummyClassifier

import mapper
import reducer
from predictions.formats import counters
from predictions.formats.id_digest import IdDigest
from predictions.formats.manifest import ModelManifest
from predictions.formats.prediction_line import NOT_UNIQUE, parse_line
from predictions.formats.record_line import (
    Column,
    escape,
    feature_fields,
    field_ends,
    fingerprints,
    first_fields,
    read_blocks,
    split_lines,
)
from predictions.formats.row_key import record_id, row_keys, why_unfit
from predictions.formats.unreadable import find
from predictions.jobs.bundle import bundle
from predictions.scoring.estimator import EstimatorPredictor
from predictions.scoring.model import Model
from predictions.scoring.predict import Scorer

RELEASE = "20261122T154500Z"
SCORED = b"1795362300000"
JOB = {"mapreduce_job_id": "job_1795362300000_0001"}


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    for name in ("job_id", "map_input_file", "map_input_start", "task_attempt_id"):
        monkeypatch.delenv(f"mapreduce_{name}", raising=False)


@pytest.fixture
def task(tmp_path, trained, monkeypatch):
    """Call a script in this process, in a folder with links to the model."""
    for target in (trained / "model").iterdir():
        (tmp_path / target.name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    mains = {"mapper.py": mapper.main, "reducer.py": reducer.main}
    return lambda name, *arguments, **options: script(mains[name], *arguments, **options)


@pytest.fixture
def process(tmp_path, trained):
    """Run a script as a process in a folder like a task's: links to scripts and model, the bundle unpacked as `lib`."""
    for target in (CHECKOUT / "mapper.py", CHECKOUT / "reducer.py", *(trained / "model").iterdir()):
        (tmp_path / target.name).symlink_to(target)
    zipfile.ZipFile(io.BytesIO(bundle())).extractall(tmp_path / "lib")

    def run(*command, stdin=b"", path="lib", **environment):
        # Scripts copied out of the checkout: besides the libraries, they can import only what PYTHONPATH names.
        shipped = [tmp_path / "scripts" / word if word.endswith(".py") else word for word in command]
        (tmp_path / "scripts").mkdir(exist_ok=True)
        for name in ("mapper.py", "reducer.py"):
            (tmp_path / "scripts" / name).write_bytes((CHECKOUT / name).read_bytes())
        return subprocess.run(
            [sys.executable, *map(str, shipped)],
            input=stdin,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, **environment},
            capture_output=True,
        )

    return run


def sort(lines):
    command, environment = ["sort", "-t", "\t", "-k1,1", "-s"], {**os.environ, "LC_ALL": "C"}
    return subprocess.run(command, input=lines, env=environment, capture_output=True, check=True).stdout


def pipe(task, lines, sort_input=True, **environment):
    scored = task("mapper.py", "model.json", RELEASE, stdin=lines, **environment)
    assert scored.returncode == 0, scored.stderr
    return scored, task("reducer.py", stdin=sort(scored.stdout) if sort_input else scored.stdout, **environment)


def counts_of(scored, reduced):
    """Return the counters of both scripts, which must add up."""
    counts = counters.parse_lines((scored.stderr + reduced.stderr).decode())
    check(counts)
    return counts


def check(counts):
    assert counts["read"] == counts["scored"] + counts["failed"] + counts["duplicates"] + counts["unreadable"]
    assert (counts["written_digest"] + counts["duplicates_digest"] - counts["read_digest"]) % 2**64 == 0
    assert counts["unreadable"] == counts["unreadable_written"]


def test_the_pipe(process, trained):
    lines = (trained / "export" / "part-00000").read_bytes()
    scored, reduced = pipe(process, lines)
    assert reduced.returncode == 0
    rows = [line.split(b"\t") for line in reduced.stdout.splitlines()]
    assert len(rows) == 400
    ends = field_ends(lines, 5)
    ids = first_fields(lines, ends)
    by_id = dict(zip(ids, fingerprints(feature_fields(lines, ends)), strict=True))
    for key, prediction, probability, record, scored_at, error in rows:
        assert prediction in (b"0", b"1")
        assert 0.5 <= float(probability) <= 1
        assert record == by_id[key[5:]]
        assert (scored_at, error) == (SCORED, b"\\N")
    keys = [row[0] for row in rows]
    assert keys == sorted(keys)
    digest = (int(IdDigest.of(ids)) + 2**63) % 2**64 - 2**63
    assert counts_of(scored, reduced) == {
        **{"read": 400, "unreadable": 0, "read_digest": digest},
        **{"scored": 400, "failed": 0, "duplicates": 0, "conflicts": 0, "unreadable_written": 0, "carried": 0},
        **{"written_digest": digest, "duplicates_digest": 0},
    }


def test_the_order_of_the_input_does_not_matter(task, trained):
    lines = (trained / "export" / "part-00000").read_bytes().splitlines(keepends=True)
    _scored, first = pipe(task, b"".join(lines))
    random.Random(0).shuffle(lines)
    _scored, second = pipe(task, b"".join(lines))
    assert first.stdout == second.stdout


def test_the_scripts_need_the_bundle_on_the_path(process):
    if list(Path(get_path("purelib")).glob("predictions-*.dist-info")):
        pytest.skip("the package is installed here; tox runs this test where it is not")
    ended = process("mapper.py", "model.json", RELEASE, path="")
    assert ended.returncode == 1
    assert b"No module named 'predictions'" in ended.stderr


def test_the_scripts_import_neither_hbase_nor_a_database_nor_a_command_line(process):
    probe = (
        "import sys, mapper, reducer; "
        "print(sorted({'happybase', 'thriftpy2', 'sqlite3', 'click', 'pydantic', 'fsspec', 'requests'} & set(sys.modules)))"
    )
    ended = process("-c", probe, path=f"lib{os.pathsep}{CHECKOUT}")
    assert ended.stdout.strip() == b"[]", ended.stderr


def test_empty_input_is_no_error(task):
    scored, reduced = pipe(task, b"")
    assert (scored.stdout, reduced.stdout, reduced.returncode) == (b"", b"", 0)
    assert set(counts_of(scored, reduced).values()) == {0}


def test_a_record_that_cannot_be_scored_keeps_its_line(task):
    lines = b"a\tAT\t12.5\t1\t0\nb\tAT\ttwelve\t1\t0\nc\tAT\t12.5\t1\t0\n"
    scored, reduced = pipe(task, lines)
    rows = {line[5:].split(b"\t")[0]: line.split(b"\t")[1:] for line in reduced.stdout.splitlines()}
    assert rows[b"b"] == [b"\\N", b"\\N", *fingerprints([b"AT\ttwelve\t1"]), SCORED, b"amount: not a number"]
    assert rows[b"a"] == rows[b"c"]
    assert reduced.returncode == 0
    counts = counts_of(scored, reduced)
    assert (counts["scored"], counts["failed"]) == (2, 1)


BAD_LINES = [
    (b"2\tAT", "2 fields, not 5"),
    (b"2\tAT\t1\t1\t0\t0", "6 fields, not 5"),
    (b"", "1 fields, not 5"),
    (b"\tAT\t1\t1\t0", "the ID is empty"),
    (b"\\N\tAT\t1\t1\t0", "the ID is NULL"),
    (b"x" * 32763 + b"\tAT\t1\t1\t0", "the ID is 32,763 bytes long; a row key can hold 32,762"),
    (b"a\\qb\tAT\t1\t1\t0", "the ID is not escaped as COPY escapes it"),
    (b"a\rb\tAT\t1\t1\t0", "the ID is not escaped as COPY escapes it"),
    (b"\xff\tAT\t1\t1\t0", "the ID is not valid UTF-8"),
]


def test_unreadable_lines_are_kept_with_their_line_numbers(task):
    good = [b"%d\tAT\t12.5\t%d\t0\n" % (number, number) for number in range(len(BAD_LINES) + 1)]
    bad = [line + b"\n" for line, _reason in BAD_LINES]
    # Each bad line is between two good ones, so the first bad line is line 2 of the input.
    mixed = good[0] + b"".join(line for pair in zip(bad, good[1:], strict=True) for line in pair)
    _scored, without = pipe(task, b"".join(good))
    scored, reduced = pipe(task, mixed)
    # The good lines are scored exactly as without the bad ones, which come last, as the mapper wrote them.
    tail = reduced.stdout.removeprefix(without.stdout)
    assert reduced.stdout == without.stdout + tail
    assert tail == sort(b"".join(line + b"\n" for line in split_lines(scored.stdout) if line[:11] == b"unreadable:"))
    assert tail.startswith(b"unreadable:stdin:000000000002\t\\N\t\\N\t\\N\t" + SCORED + b"\t2 fields, not 5: 2\\tAT\n")
    assert [(line.split, line.number, line.line, line.reason) for line in find(reduced.stdout)] == [
        ("stdin", 2 * index + 2, line, reason) for index, (line, reason) in enumerate(BAD_LINES)
    ]
    counts = counts_of(scored, reduced)
    assert (counts["read"], counts["scored"], counts["unreadable"]) == (len(good) + len(bad), len(good), len(bad))
    assert without.returncode == 0
    assert reduced.returncode == 3
    assert reduced.stderr.decode().splitlines()[-1] == (
        "reducer.py: 9 lines could not be read; they come last in the output"
    )
    # In a job the driver gets the counters and refuses; a failing task would only make Hadoop try it again.
    in_job = task("reducer.py", stdin=sort(scored.stdout), **JOB)
    assert (in_job.returncode, in_job.stdout) == (0, reduced.stdout)
    assert b"reducer.py" not in in_job.stderr
    assert counts_of(scored, in_job) == counts


def test_an_unreadable_line_names_the_split_of_its_job(task):
    split = {"mapreduce_map_input_file": "hdfs://host:9000/x/export/part-00007", "mapreduce_map_input_start": "128"}
    _scored, reduced = pipe(task, b"1\tAT\t1\t1\t0\n2\tAT\n", **JOB, **split)
    assert reduced.returncode == 0
    assert [line[:2] for line in find(reduced.stdout)] == [("part-00007+128", 2)]
    assert split_lines(reduced.stdout)[-1].startswith(b"unreadable:part-00007+128:000000000002\t")


def test_an_input_of_nothing_but_unreadable_lines(task):
    scored, reduced = pipe(task, b"\n\n")
    assert [line.number for line in find(reduced.stdout)] == [1, 2]
    assert reduced.returncode == 3
    assert counts_of(scored, reduced)["unreadable"] == 2


def test_a_changed_model_stops_the_mapper(task, tmp_path):
    (tmp_path / "model.npz").unlink()
    (tmp_path / "model.npz").write_bytes(b"another")
    ended = task("mapper.py", "model.json", RELEASE, stdin=b"1\tAT\t1\t1\t0\n")
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert ended.stderr.startswith(b"mapper.py: ")
    assert b"sha256" in ended.stderr


def test_the_same_record_twice_is_written_once(task):
    scored, reduced = pipe(task, b"a\tAT\t12.5\t1\t0\n" * 3 + b"b\tAT\t12.5\t1\t0\n" + b"a\tAT\t12.5\t1\t1\n")
    assert len(reduced.stdout.splitlines()) == 2
    assert reduced.returncode == 0
    counts = counts_of(scored, reduced)
    assert (counts["read"], counts["scored"], counts["duplicates"], counts["conflicts"]) == (5, 2, 3, 0)


def test_an_id_that_stands_for_different_records_has_a_line_that_says_so(task):
    ambiguous = b"".join(b"id-%d\tAT\t12.5\t1\t0\nid-%d\tCH\t12.5\t1\t0\n" % (n, n) for n in range(9))
    scored, reduced = pipe(task, ambiguous + b"sound\tAT\t12.5\t1\t0\n")
    lines = {record_id(line.row_key): line for line in map(parse_line, split_lines(reduced.stdout))}
    sound = lines.pop(b"sound")
    assert (sound.prediction in (b"0", b"1"), sound.error) == (True, b"\\N")
    assert sorted(lines) == [b"id-%d" % n for n in range(9)]
    for line in lines.values():
        assert line[1:] == ((b"\\N", b"\\N"), line.record, SCORED, b"the ID stands for different records")
        assert line.record in fingerprints([b"AT\t12.5\t1", b"CH\t12.5\t1"])
    assert reduced.returncode == 2
    message = reduced.stderr.decode().splitlines()[-1]
    assert message.startswith("reducer.py: the ID is not unique: 9 IDs stand for different records, for example id-")
    assert message.count("id-") == 5
    counts = counts_of(scored, reduced)
    assert (counts["conflicts"], counts["failed"], counts["duplicates"], counts["scored"]) == (9, 9, 9, 1)
    in_job = task("reducer.py", stdin=sort(scored.stdout), **JOB)
    assert (in_job.returncode, in_job.stdout) == (0, reduced.stdout)
    assert counts_of(scored, in_job) == counts


def test_very_many_lines_of_one_id_are_reduced_to_one(task):
    duplicates, line = 100_000, b"a\tAT\t12.5\t1\t0\n"
    scored, reduced = pipe(task, duplicates * line)
    assert len(scored.stdout) > 2 * (2 << 20)  # several of the reducer's blocks
    assert reduced.stdout == scored.stdout[: scored.stdout.index(b"\n") + 1]
    counts = counts_of(scored, reduced)
    assert (counts["read"], counts["scored"], counts["duplicates"]) == (duplicates, 1, duplicates - 1)
    # Another record of that ID is found, however many lines are between them.
    other_record = scored.stdout[: scored.stdout.index(b"\n") + 1].replace(*fingerprints([b"AT\t12.5\t1", b"another"]))
    for lines in (scored.stdout + other_record, other_record + scored.stdout):
        conflict = task("reducer.py", stdin=lines)
        assert conflict.returncode == 2
        [line] = map(parse_line, split_lines(conflict.stdout))
        assert (line.prediction, line.error) == (b"\\N", NOT_UNIQUE)
        assert counters.parse_lines(conflict.stderr.decode())["duplicates"] == duplicates


def test_a_malformed_prediction_line_is_refused(task):
    for stdin in (b"\n", b"a\tb\n", b"a\tb\na\tb\n"):
        ended = task("reducer.py", stdin=stdin)
        assert ended.returncode == 2
        assert ended.stderr.startswith(b"reducer.py: ")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mapper.py", [], b"the following arguments are required: MODEL, RELEASE"),
        ("mapper.py", ["model.json", RELEASE, "more"], b"unrecognized arguments: more"),
        ("reducer.py", ["hfiles"], b"unrecognized arguments: hfiles"),
    ],
)
def test_wrong_arguments_show_the_usage(task, name, arguments, message):
    ended = task(name, *arguments)
    usage, *_rest, last = ended.stderr.splitlines()
    assert (ended.returncode, usage[: len(f"usage: {name}")].decode(), message in last) == (2, f"usage: {name}", True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, b"No such file"),
        (b"0001:2\t1", b"not the expected JSON"),
        (b"[]", b"not the expected JSON"),
    ],
)
def test_a_file_that_names_no_served_release_is_refused(task, tmp_path, data, message):
    if data:
        (tmp_path / "current.json").write_bytes(data)
    ended = task("reducer.py", "--current", "current.json")
    assert (ended.returncode, ended.stderr.startswith(b"reducer.py: current.json: ")) == (2, True)
    assert message in ended.stderr


def test_input_out_of_order_is_refused(task):
    _scored, reduced = pipe(task, b"".join(b"%d\tAT\t1\t1\t0\n" % n for n in range(50)), sort_input=False)
    assert reduced.returncode == 2
    assert b"sort with LC_ALL=C sort" in reduced.stderr


# From here on: the functions of the scripts in this process, a few bytes at a time, with a model that predicts the same
# for every record.

ODD_TEXTS = [
    *(
        "007",
        "7",
        " 7",
        "7 ",
        "1e3",
        "1000",
        "9223372036854775807",
        "550e8400-e29b-41d4-a716-446655440000",
        "é",
        "e\u0301",
    ),
    *(
        "a\tb",
        "a\\tb",
        "\r",
        "\r\n",
        "\n",
        "\0",
        "\\",
        "\\N",
        "'",
        '"',
        '"a',
        "\u2028",
        "\x85",
        "\ufeffx",
        "🙂",
        "\x1a",
        "#",
    ),
    *("unreadable:stdin:000000000001", "the ID stands for different records", "True", "NULL", " ", "\b\f\v"),
]
texts = (st.sampled_from(ODD_TEXTS) | st.text()).map(lambda text: escape(text.encode(errors="replace")))
fields = texts | st.sampled_from([b"\\N", b"", b"\xff", b"\\\\xff"])
amounts = st.sampled_from([b"1", b"2.5", b"\\N"]) | fields
record_lines = st.tuples(texts.filter(bool), fields, amounts, fields).map(b"\t".join)
bad_lines = st.sampled_from([b"", b"\t", b"1\ta\t2", b"1\ta\t2\t0\t", b"\t\t\t", b"\\N\ta\t1\t0", b"\xff\ta\t1\t0"])


@pytest.fixture(scope="module")
def same_for_all():
    manifest = ModelManifest(features=[Column("kind", "text"), Column("amount", "real")], classes=["yes"])
    return Model(EstimatorPredictor(DummyClassifier().fit(np.zeros((1, 2)), ["yes"]), manifest), manifest)


def in_process(model, data, size):
    """Return the mapper's lines in order, the reducer's lines, and the counters of both."""
    counts = Counter(
        dict.fromkeys(("read", "unreadable", "read_digest", "scored", "failed", "duplicates", "conflicts"), 0)
    )
    split = mapper.Split("stdin", model.manifest.fields, SCORED)
    lines_of = Scorer(model, SCORED, "split stdin").lines
    mapped = b"".join(mapper.map_records(read_blocks(io.BytesIO(data), size), split, lines_of, counts))
    # sorted() gives the order of the pipe's sort: tests/test_rowkey.py compares them.
    lines = sorted(split_lines(mapped), key=lambda line: line.partition(b"\t")[0])
    ordered = b"".join(line + b"\n" for line in lines)
    reduced = reducer.one_line_a_key(read_blocks(io.BytesIO(ordered), size), counts, [])
    return lines, b"".join(reducer.count_predictions(reduced, counts)), counts


@given(st.lists(record_lines | bad_lines), st.sampled_from([7, 100, 1 << 20]))
def test_any_text_survives_and_every_line_is_answered(same_for_all, lines, size):
    data = b"".join(line + b"\n" for line in lines)
    mapped, reduced, counts = in_process(same_for_all, data, size)
    assert len(mapped) == counts["read"] == len(lines)
    check(counts)

    features = {}
    unreadable = []
    for number, line in enumerate(lines, 1):
        id_field, *values = line.split(b"\t")
        if len(values) != 3 or why_unfit(id_field):
            unreadable.append((number, line))
        else:
            features.setdefault(id_field, set()).add(b"\t".join(values[:-1]))
    assert [(line.number, line.line) for line in find(reduced)] == unreadable
    predictions = {
        record_id(line.row_key): line
        for line in map(parse_line, split_lines(reduced))
        if not line.row_key.startswith(b"unreadable:")
    }
    assert len(predictions) + len(unreadable) == reduced.count(b"\n")
    assert predictions.keys() == features.keys()
    for id_field, line in predictions.items():
        assert line.row_key == row_keys([id_field])[0]
        assert line.record in fingerprints(features[id_field])
        assert (line.error == NOT_UNIQUE) == (len(features[id_field]) > 1)
        assert (line.prediction, line.probability) == ((b"yes", b"1") if line.error == b"\\N" else (b"\\N", b"\\N"))


@given(st.lists(record_lines, min_size=1, unique_by=lambda line: line.partition(b"\t")[0]), st.data())
def test_the_neighbours_of_a_bad_line_are_scored_as_without_it(same_for_all, lines, data):
    mixed = list(lines)
    for bad in data.draw(st.lists(bad_lines, min_size=1)):
        mixed.insert(data.draw(st.integers(0, len(mixed))), bad)
    _mapped, without, _counts = in_process(same_for_all, b"".join(line + b"\n" for line in lines), 1 << 20)
    _mapped, reduced, _counts = in_process(same_for_all, b"".join(line + b"\n" for line in mixed), 1 << 20)
    assert reduced.startswith(without)
    assert len(list(find(reduced))) == len(mixed) - len(lines)


def test_a_megabyte_in_a_field_survives(same_for_all):
    large = escape(("".join(ODD_TEXTS) * 6000).encode())
    assert len(large) > 1_000_000
    lines = [b"1\t" + large + b"\t1\t0", b"2\ta\t" + large + b"\t0", large + b"\ta\t1\t0"]
    _mapped, reduced, _counts = in_process(same_for_all, b"".join(line + b"\n" for line in lines), 1 << 20)
    predictions = {record_id(line.row_key): line for line in map(parse_line, split_lines(reduced)[:2])}
    assert predictions[b"1"].error == b"\\N"
    assert predictions[b"2"].error == b"amount: not a number"
    assert [predictions[number].record for number in (b"1", b"2")] == fingerprints([large + b"\t1", b"a\t" + large])
    assert [line.line for line in find(reduced)] == [lines[2]]
