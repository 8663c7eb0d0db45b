"""The two scripts as processes, as Hadoop runs them: through links, in a folder where the package is not."""

import os
import random
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from sysconfig import get_path

import pytest
from conftest import CHECKOUT

from hadoop.packing import bundle
from predictions.records import fingerprints, split_records

RELEASE = "20261122T154500Z"


@pytest.fixture
def task(tmp_path, trained):
    """A task's folder: links to the scripts and the model, the bundle unpacked as `lib`."""
    for target in (CHECKOUT / "mapper.py", CHECKOUT / "reducer.py", *(trained / "model").iterdir()):
        (tmp_path / target.name).symlink_to(target)
    zipfile.ZipFile(BytesIO(bundle())).extractall(tmp_path / "lib")

    def run(*command, stdin=b"", path="lib"):
        # Away from the checkout: only what PYTHONPATH names can be imported beside the libraries.
        shipped = [tmp_path / "scripts" / word if word.endswith(".py") else word for word in command]
        (tmp_path / "scripts").mkdir(exist_ok=True)
        for script in ("mapper.py", "reducer.py"):
            (tmp_path / "scripts" / script).write_bytes((CHECKOUT / script).read_bytes())
        return subprocess.run(
            [sys.executable, *map(str, shipped)],
            input=stdin,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
        )

    return run


def pipe(task, lines, sort_input=True):
    scored = task("mapper.py", "model.json", RELEASE, stdin=lines)
    assert scored.returncode == 0, scored.stderr
    ordered = subprocess.run(
        ["sort", "-t", "\t", "-k1,1", "-s"], input=scored.stdout, env={**os.environ, "LC_ALL": "C"}, capture_output=True
    )
    return scored, task("reducer.py", stdin=ordered.stdout if sort_input else scored.stdout)


def test_the_pipe(task, trained):
    lines = (trained / "export" / "part-00000").read_bytes()
    scored, reduced = pipe(task, lines)
    assert reduced.returncode == 0
    rows = [line.split(b"\t") for line in reduced.stdout.splitlines()]
    assert len(rows) == 400
    ids, features = split_records(lines, 5)
    by_id = dict(zip(ids, fingerprints(features), strict=True))
    for key, prediction, probability, record, when, error in rows:
        assert prediction in (b"0", b"1")
        assert 0.5 <= float(probability) <= 1
        assert record == by_id[key[5:]]
        assert (when, error) == (b"1795362300000", b"\\N")
    keys = [row[0] for row in rows]
    assert keys == sorted(keys)
    assert b"reporter:counter:predictions,scored,400\n" in scored.stderr
    assert b"reporter:counter:predictions,predictions,400\n" in reduced.stderr


def test_the_order_of_the_input_does_not_matter(task, trained):
    lines = (trained / "export" / "part-00000").read_bytes().splitlines(keepends=True)
    _scored, first = pipe(task, b"".join(lines))
    random.Random(0).shuffle(lines)
    _scored, second = pipe(task, b"".join(lines))
    assert first.stdout == second.stdout


def test_the_scripts_need_the_bundle_on_the_path(task):
    if list(Path(get_path("purelib")).glob("predictions-*.dist-info")):
        pytest.skip("the package is installed here; tox runs this test where it is not")
    found = task("mapper.py", "model.json", RELEASE, path="")
    assert found.returncode == 1
    assert b"No module named 'predictions'" in found.stderr


def test_the_scripts_import_neither_hbase_nor_a_database_nor_a_command_line(task, tmp_path):
    probe = (
        "import sys, mapper, reducer; "
        "print(sorted({'happybase', 'thriftpy2', 'sqlite3', 'click', 'pydantic', 'fsspec', 'requests'} & set(sys.modules)))"
    )
    found = task("-c", probe, path=f"lib{os.pathsep}{CHECKOUT}")
    assert found.stdout.strip() == b"[]", found.stderr


def test_empty_input_is_no_error(task):
    scored, reduced = pipe(task, b"")
    assert (scored.stdout, reduced.stdout, reduced.returncode) == (b"", b"", 0)
    assert b"reporter:counter:predictions,read,0\n" in scored.stderr


def test_a_record_that_cannot_be_scored_keeps_its_line(task):
    lines = b"a\tAT\t12.5\t1\t0\nb\tAT\ttwelve\t1\t0\nc\tAT\t12.5\t1\t0\n"
    scored, reduced = pipe(task, lines)
    rows = {line[5:].split(b"\t")[0]: line.split(b"\t")[1:] for line in reduced.stdout.splitlines()}
    assert rows[b"b"] == [b"\\N", b"\\N", *fingerprints([b"AT\ttwelve\t1"]), b"1795362300000", b"amount: not a number"]
    assert rows[b"a"] == rows[b"c"]
    assert b"reporter:counter:predictions,failed,1\n" in scored.stderr


def test_a_line_of_another_shape_stops_the_mapper(task):
    found = task("mapper.py", "model.json", RELEASE, stdin=b"1\tAT\t1\t1\t0\n2\tAT\n")
    assert (found.returncode, found.stdout) == (2, b"")
    assert found.stderr.decode().splitlines() == [
        "mapper.py: line 2 of the split has 2 fields, the model takes 5 (ID, features, label): b'2\\tAT'"
    ]


def test_a_changed_model_stops_the_mapper(task, tmp_path):
    (tmp_path / "model.skops").unlink()
    (tmp_path / "model.skops").write_bytes(b"another")
    found = task("mapper.py", "model.json", RELEASE, stdin=b"1\tAT\t1\t1\t0\n")
    assert (found.returncode, found.stdout) == (2, b"")
    assert found.stderr.startswith(b"mapper.py: ")
    assert b"sha256" in found.stderr


def test_the_same_record_twice_is_written_once(task):
    _scored, reduced = pipe(task, b"a\tAT\t12.5\t1\t0\n" * 3 + b"b\tAT\t12.5\t1\t0\n" + b"a\tAT\t12.5\t1\t1\n")
    assert len(reduced.stdout.splitlines()) == 2
    assert b"reporter:counter:predictions,duplicates,3\n" in reduced.stderr
    assert b"reporter:counter:predictions,predictions,2\n" in reduced.stderr


def test_one_id_for_different_records_is_refused(task):
    lines = b"".join(b"id-%d\tAT\t12.5\t1\t0\nid-%d\tCH\t12.5\t1\t0\n" % (n, n) for n in range(9))
    _scored, reduced = pipe(task, lines)
    assert reduced.returncode == 2
    [message] = reduced.stderr.decode().splitlines()
    assert message.startswith("reducer.py: the ID is not unique: ")
    assert message.count("id-") == 5


def test_what_is_no_prediction_line_is_refused(task):
    for stdin in (b"\n", b"a\tb\n", b"a\tb\na\tb\n"):
        found = task("reducer.py", stdin=stdin)
        assert found.returncode == 2
        assert found.stderr.startswith(b"reducer.py: ")


def test_the_mapper_without_arguments_shows_its_usage(task):
    found = task("mapper.py")
    assert (found.returncode, found.stderr.startswith(b"usage: mapper.py")) == (2, True)


def test_input_out_of_order_is_refused(task):
    _scored, reduced = pipe(task, b"".join(b"%d\tAT\t1\t1\t0\n" % n for n in range(50)), sort_input=False)
    assert reduced.returncode == 2
    assert b"sort with LC_ALL=C sort" in reduced.stderr
