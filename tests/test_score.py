"""The scoring stage on the command line, without Hadoop: the runners `pipe` and `local`, and what they refuse."""

import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import badmodels
import psutil
import pytest
from conftest import CHECKOUT, PATIENCE, manifest_of, replace_export
from hypothesis import given
from hypothesis import strategies as st
from inprocess import script

import mapper
import reducer
from predictions.formats.prediction_line import parse_line
from predictions.formats.record_line import split_lines
from predictions.formats.row_key import record_id, row_keys, split_points
from predictions.stages.score_local import cut
from predictions.storage import Storage

PIPE, LOCAL = ("--runner", "pipe"), ("--runner", "local")
both_runners = pytest.mark.parametrize("runner", ["pipe", "local"])


@pytest.fixture
def release(trained, orders):
    """The folder of an exported and trained release, in the orders' storage."""
    shutil.copytree(trained, orders / "storage" / "orders" / trained.name)
    return Storage(str(orders / "storage"), "orders").release()


@pytest.fixture
def score(predictions, orders):
    """Score, check the exit code, and return stderr; no process and no temporary file may be left in any case.

    With `processes`, a runner starts its processes; else their functions run in this process.
    """

    def score(*arguments, code=0, **options):
        ended = predictions("score", *arguments, **options)
        assert ended.returncode == code, ended.stderr
        assert "Traceback" not in ended.stderr
        assert children(orders) == []
        assert leftovers(orders) == []
        return ended.stderr

    return score


@pytest.fixture
def one_core(monkeypatch):
    """Let the runner `local` have one mapper, in tests that do not need two: each takes two seconds to start."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})


def children(orders):
    """Return the command lines of the processes in the orders' folder, where all processes of a run work."""
    command_lines = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        if process.info["cwd"] == str(orders) and process.info["status"] != psutil.STATUS_ZOMBIE:
            command_lines.append(process.info["cmdline"])
    return command_lines


def leftovers(orders):
    return [path for path in orders.glob("storage/*/*/*") if path.name.startswith("_")]


def message(stderr):
    """Return the line that says why it failed; there must be exactly one."""
    [line] = [line for line in stderr.splitlines() if line.startswith("predictions: ")]
    return line.removeprefix("predictions: ")


def lines_of(folder, part="export"):
    return [line for path in folder.files(part) for block in folder.blocks(path) for line in split_lines(block)]


def copies(lines, number):
    return [b"%d-%b" % (copy, line) for copy in range(number) for line in lines]


def with_amount(line, amount):
    fields = line.split(b"\t")
    fields[2] = amount
    return b"\t".join(fields)


def parts_of(folder):
    return {path.rpartition("/")[2]: folder.storage.fs.cat_file(path) for path in folder.files("scored")}


def sort(lines):
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        ["sort", "-t", "\t", "-k1,1", "-s"], input=lines, env=environment, stdout=subprocess.PIPE, check=True
    ).stdout


def scripts(folder):
    """Return the output of mapper.py, `sort` and reducer.py, run one after the other."""
    records = b"".join(folder.storage.fs.cat_file(path) for path in folder.files("export"))
    mapped = script(mapper.main, f"{folder.path}/model/model.json", folder.release, stdin=records)
    assert mapped.returncode == 0, mapped.stderr
    reduced = script(reducer.main, stdin=sort(mapped.stdout))
    assert reduced.returncode == 0, reduced.stderr
    return reduced.stdout


def typed_pipe(folder):
    """Return the output of `cat part-* | mapper.py | sort | reducer.py`, as typed by hand."""
    command = (
        f"cat export/part-* | {sys.executable} {CHECKOUT}/mapper.py model/model.json {folder.release}"
        f" | LC_ALL=C sort -t$'\\t' -k1,1 -s | {sys.executable} {CHECKOUT}/reducer.py"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=folder.path, env=environment, stdout=subprocess.PIPE, check=True
    ).stdout


def check_parts(folder, regions=4):
    """Check that each part file has its region's row keys, in order; return the bytes of all parts."""
    parts = parts_of(folder)
    assert list(parts) == [f"part-{region:05d}" for region in range(regions)]
    bounds = [b"", *split_points(regions), b"~"]
    for region, data in enumerate(parts.values()):
        keys = [parse_line(line).row_key for line in split_lines(data)]
        assert keys == sorted(keys)
        assert all(bounds[region] <= key < bounds[region + 1] for key in keys)
    return b"".join(parts.values())


def both(score, folder, pipe=False, local=False):
    """Score with each runner; return the part files, which must be the same, byte for byte.

    Args:
        score: the fixture.
        folder: of the release.
        pipe: whether the runner `pipe` starts its processes.
        local: whether the runner `local`, the default, starts its processes.
    """
    score(*PIPE, processes=pipe)
    piped = parts_of(folder)
    folder.remove("scored")
    score(processes=local)
    assert parts_of(folder) == piped
    return piped


def test_both_runners_write_what_the_scripts_do(score, release):
    both(score, release, local=True)
    written = check_parts(release)
    assert written == scripts(release)
    ids = sorted(record_id(parse_line(line).row_key) for line in split_lines(written))
    assert ids == sorted(line.partition(b"\t")[0] for line in lines_of(release))
    assert len(ids) == 400


def test_both_runners_write_what_the_typed_pipe_does_from_many_blocks_of_several_files(score, release):
    """More than the first block of each mapper, from files of different sizes, one of them empty, into seven regions.

    Some records come twice, at random positions.
    """
    lines = copies(lines_of(release), 300)
    lines += lines[:500]
    random.Random(1).shuffle(lines)
    replace_export(release, [lines[:70_000], [], lines[70_000:70_001], lines[70_001:]])
    score(*PIPE, processes=True, PREDICTIONS_HBASE_REGIONS="7")
    piped = parts_of(release)
    release.remove("scored")
    score(*LOCAL, processes=True, PREDICTIONS_HBASE_REGIONS="7")
    assert parts_of(release) == piped
    assert check_parts(release, 7) == typed_pipe(release)
    scored = manifest_of(release).scored
    assert (scored.read, scored.rows, scored.duplicates) == (len(lines), len(set(lines)), 500)


@pytest.mark.parametrize(
    ("estimator", "label", "features"),
    [
        ("sklearn.linear_model.LogisticRegression", "paid", ["country", "amount", "items"]),
        ("sklearn.ensemble.HistGradientBoostingRegressor", "amount", ["country", "items"]),
    ],
)
def test_other_estimators(predictions, score, orders, estimator, label, features):
    model = {"MODEL_ESTIMATOR": estimator, "MODEL_LABEL": label, "MODEL_FEATURES": json.dumps(features)}
    model = {f"PREDICTIONS_{name}": value for name, value in model.items()}
    for stage in ("export", "train"):
        ended = predictions(stage, **model)
        assert ended.returncode == 0, ended.stderr
    folder = Storage(str(orders / "storage"), "orders").release()
    both(score, folder, pipe=True)
    assert check_parts(folder) == scripts(folder)
    lines = [parse_line(line) for line in lines_of(folder, "scored")]
    assert {line.probability == b"\\N" for line in lines} == {label == "amount"}


def test_an_empty_region_has_an_empty_part_file(score, release, one_core):
    few = [line for line in lines_of(release) if row_keys([line.partition(b"\t")[0]])[0] < b"4000"]
    assert few
    replace_export(release, [few])
    parts = both(score, release, local=True)
    assert [bool(data) for data in parts.values()] == [True, False, False, False]
    check_parts(release)


def test_an_export_without_records(score, release):
    replace_export(release, [[], []])
    assert set(both(score, release, pipe=True).values()) == {b""}
    assert manifest_of(release).scored.rows == 0


def test_the_manifest_accounts_for_every_record(score, release):
    lines = lines_of(release)
    replace_export(release, [lines[:100], [with_amount(lines[100], b"twelve"), *lines[101:]]])
    stderr = score(code=1)
    assert "scored 399 records, 1 failed; it took" in stderr
    manifest = manifest_of(release)
    scored = manifest.scored
    assert scored.split_points == ["4000", "8000", "c000"]
    assert scored.id_digest == manifest.export.id_digest
    assert scored.seconds > 0
    counters = ("read", "scored", "failed", "duplicates", "unreadable", "rows")
    assert {name: getattr(scored, name) for name in counters} == {
        **{"read": 400, "scored": 399, "failed": 1, "duplicates": 0},
        **{"unreadable": 0, "rows": 400},
    }
    assert manifest.task == "classification"
    parts = parts_of(release)
    assert "scored 399 records" in score(code=1)  # the release is not scored again
    assert (parts_of(release), manifest_of(release)) == (parts, manifest)


def test_more_failed_records_than_allowed_are_refused_with_the_reasons(score, release):
    lines = lines_of(release)
    bad = [with_amount(line, b"twelve") for line in lines[:4]] + [with_amount(line, b"inf") for line in lines[4:6]]
    replace_export(release, [bad[:3], bad[3:] + lines[6:]])
    error = message(score(code=3))
    assert "6 of 400 records could not be scored, more than gates.max_failed (1.00%) allows: " in error
    assert "amount: not a number (4)" in error
    assert "(2)" in error
    assert not release.has("scored")
    assert manifest_of(release).scored is None
    assert "6 failed" in score(code=1, PREDICTIONS_GATES_MAX_FAILED="0.015")


UNREADABLE = {
    b"short\tAT": "2 fields, not 5",
    b"": "1 fields, not 5",
    b"\tAT\t1.5\t1\t0": "the ID is empty",
    b"\xff\xfe\tAT\t1.5\t1\t0": "the ID is not valid UTF-8",
    b"a\rb\tAT\t1.5\t1\t0": "the ID is not escaped as COPY escapes it",
    b"x\ty\tAT\t1.5\t1\t0": "6 fields, not 5",
}


@both_runners
def test_unreadable_lines_are_kept_with_their_file_and_line_number(score, release, runner):
    """In several files, in the first and in later blocks, first and last in a file, and alone in a file."""
    good = copies(lines_of(release), 250)
    bad = iter(UNREADABLE.items())
    parts, expected = [good[:30], good[30:80_000], [], good[80_000:]], []
    for part, index in ((0, 0), (0, 20), (1, len(parts[1])), (1, 60_000), (2, 0), (3, 3)):
        line, reason = next(bad)
        parts[part] = [*parts[part][:index], line, *parts[part][index:]]
        expected.append((part, line, reason))
    replace_export(release, parts)
    error = message(score("--runner", runner, code=3, processes=True))
    file = Path(release.path) / "unreadable.txt"
    assert error.startswith(f"6 of {len(good) + 6:,} lines could not be read; they are in {file}, ")
    head, *rows = file.read_bytes().split(b"\n")[:-1]
    assert head == b"split\tline\treason\ttext"
    assert {tuple(row.split(b"\t", 3)) for row in rows} == {
        (b"part-%05d+0" % part, b"%d" % (parts[part].index(line) + 1), reason.encode(), line)
        for part, line, reason in expected
    }
    assert len(rows) == 6
    assert sorted(os.listdir(release.path)) == ["export", "manifest.json", "model", "unreadable.txt"]
    assert manifest_of(release).scored is None

    replace_export(release, [good[:400]])
    score("--runner", runner)
    assert sorted(os.listdir(release.path)) == ["export", "manifest.json", "model", "scored"]
    assert manifest_of(release).scored.unreadable == 0


def test_a_record_that_came_twice_is_written_once_and_counted(score, release):
    lines = lines_of(release)
    replace_export(release, [[*lines, lines[0]], [lines[1], lines[0]], lines[5:7]])
    both(score, release)
    assert check_parts(release).count(b"\n") == 400
    scored = manifest_of(release).scored
    assert (scored.read, scored.duplicates, scored.rows) == (405, 5, 400)
    assert "5 came twice" in score()


@both_runners
def test_one_id_for_different_records_is_refused_with_examples(score, release, runner):
    lines = lines_of(release)
    conflicting = [with_amount(line, b"0.125") for line in lines[:7]]
    replace_export(release, [lines[:5] + conflicting, lines[5:] + conflicting])
    error = message(score("--runner", runner, code=2, processes=runner == "pipe"))
    start, _for, examples = error.removesuffix("; give each record an ID of its own").partition(", for example ")
    assert start == "the ID is not unique: 7 IDs stand for different records"
    assert len(set(examples.split(", "))) == 5
    assert set(examples.split(", ")) < {line.partition(b"\t")[0].decode() for line in lines[:7]}
    assert not release.has("scored")


@both_runners
def test_a_lost_record_is_noticed_by_the_count(score, release, runner):
    lines = lines_of(release)
    replace_export(release, [lines])
    release.storage.fs.pipe_file(f"{release.path}/export/part-00000", b"\n".join(lines[1:]) + b"\n")
    error = message(score("--runner", runner, code=6, processes=runner == "pipe"))
    assert error == "400 records were exported, but the job read 399"
    assert not release.has("scored")


@both_runners
def test_a_swapped_record_is_noticed_by_the_digest(score, release, runner):
    lines = lines_of(release)
    replace_export(release, [lines])
    swapped = [lines[0].replace(b"order-", b"ordre-"), *lines[1:]]
    release.storage.fs.pipe_file(f"{release.path}/export/part-00000", b"\n".join(swapped) + b"\n")
    error = message(score("--runner", runner, code=6, processes=runner == "pipe"))
    assert error.startswith("the job did not score the records that were exported: 400 exported (ID digest ")
    assert not release.has("scored")


def put_model(release, made_by):
    """Replace the model, and return a record line on which it fails."""
    return made_by(Path(release.path) / "model")


FEW, MANY = 1, 300  # times the orders: one block, or several, so that a mapper that fails at the first still gets input


@both_runners
def test_a_record_on_which_the_model_raises_is_named(score, release, one_core, runner, full):
    line, lines = put_model(release, badmodels.raising), lines_of(release)
    for times in (FEW, MANY) if full else [{"pipe": FEW, "local": MANY}[runner]]:
        many = copies(lines, times)
        replace_export(release, [many[:30], [*many[30:], line]])
        error = message(score("--runner", runner, code=6, processes=True))
        assert error.startswith("mapper.py failed with exit code 6: ")
        assert "record unknown: ValueError: Found unknown categories" in error
        assert sorted(os.listdir(release.path)) == ["export", "manifest.json", "model"]


@both_runners
def test_a_mapper_that_crashes_is_named_with_its_signal(score, release, runner, full):
    line, lines = put_model(release, badmodels.segfaulting), lines_of(release)
    for times in (FEW, MANY) if full else [MANY]:
        many = copies(lines, times)
        replace_export(release, [[*many[:30], line, *many[30:]]])
        error = message(score("--runner", runner, code=6, processes=True))
        assert error == "mapper.py was killed by SIGSEGV: Fatal Python error: Segmentation fault"
        assert sorted(os.listdir(release.path)) == ["export", "manifest.json", "model"]


def test_a_model_that_was_replaced_is_refused_by_the_mapper(score, release, one_core):
    release.storage.fs.pipe_file(f"{release.path}/model/model.npz", b"another model")
    assert "model.npz: its sha256 is" in message(score(code=6, processes=True))
    assert not release.has("scored")


def other_sort(folder, when, does):
    """Write a `sort` that runs `does` if its arguments match the shell pattern `when`; return a PATH with it first."""
    folder.mkdir()
    script = folder / "sort"
    script.write_text(f'#!/bin/sh\ncase "$*" in {when}) {does};; esac\nexec {shutil.which("sort")} "$@"\n')
    script.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize(("runner", "when"), [("pipe", "*"), ("local", "*"), ("local", "*--merge*")])
def test_a_sort_that_fails_is_reported_in_its_own_words(score, release, tmp_path, one_core, runner, when, full):
    fails = 'echo "sort: write failed: No space left on device" >&2; exit 2'
    path, lines = other_sort(tmp_path / "bin", when, fails), lines_of(release)
    for times in (1, 100) if full else [100 if when == "*" else 1]:  # less than a pipe holds, or more
        replace_export(release, [copies(lines, times)])
        error = message(score("--runner", runner, code=6, processes=True, PATH=path))
        assert error == "sort failed with exit code 2: write failed: No space left on device"
        assert sorted(os.listdir(release.path)) == ["export", "manifest.json", "model"]


@pytest.mark.parametrize(
    ("runner", "at_work"),
    [*[("pipe", "first"), ("pipe", "mappers")], *[("local", "first"), ("local", "mappers"), ("local", "reducers")]],
)
def test_an_interrupted_run_leaves_nothing(release, orders, tmp_path, runner, at_work):
    """When the first process starts; when the mappers' output is no longer read; when the reducers wait for input."""
    replace_export(release, [copies(lines_of(release), 1 if at_work == "reducers" else 500)])
    held_file = tmp_path / "held"
    pattern = {"first": "-", "mappers": "*", "reducers": "*--merge*"}[at_work]
    path = other_sort(tmp_path / "bin", pattern, f"read -r line; touch {held_file}; exec sleep 1000")
    driver = subprocess.Popen(
        [sys.executable, "-m", "predictions", "score", "--runner", runner],
        cwd=orders,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "PATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )
    script_name, deadline = "reducer.py" if at_work == "reducers" else "mapper.py", time.monotonic() + PATIENCE
    while not (
        any(script_name in " ".join(command) for command in children(orders))
        and (at_work == "first" or held_file.exists())
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    driver.terminate()
    _stdout, stderr = driver.communicate(timeout=PATIENCE)
    assert (driver.returncode, stderr.splitlines()[-1]) == (130, "predictions: interrupted")
    assert sorted(os.listdir(release.path)) == ["export", "manifest.json", "model"]
    assert children(orders) == []
    assert manifest_of(release).scored is None


def test_a_folder_that_score_did_not_make_is_left_alone(score, release):
    (Path(release.path) / "scored").mkdir()
    (Path(release.path) / "scored" / "part-00000").write_text("not ours\n")
    error = message(score(code=2))
    assert "/scored: not written by `predictions score`, so it was not counted; remove it" in error
    assert lines_of(release, "scored") == [b"not ours"]


@both_runners
def test_a_dry_run_is_of_a_hadoop_job_only(predictions, release, runner):
    ended = predictions("score", "--dry-run", "--runner", runner)
    assert ended.returncode == 2
    assert "--dry-run prints the command of a Hadoop job; omit --runner" in ended.stderr


def test_an_unknown_runner_is_refused(predictions, release):
    ended = predictions("score", "--runner", "spark")
    assert ended.returncode == 2
    assert "'pipe', 'local', 'hadoop'" in ended.stderr


def test_neither_hbase_nor_its_client_nor_hadoop_is_needed(release, orders):
    for library in ("happybase", "thriftpy2"):
        (orders / f"{library}.py").write_text("raise ImportError('not installed')\n")
    unusable = {"PREDICTIONS_HBASE_THRIFT": "127.0.0.1:1", "PREDICTIONS_HADOOP_BIN": "/none"}
    ended = subprocess.run(
        [sys.executable, "-m", "predictions", "score", *PIPE],
        cwd=orders,
        env={**os.environ, "PYTHONPATH": f"{orders}:{CHECKOUT}", **unusable},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert manifest_of(release).scored.rows == 400


class Pieces(io.BytesIO):
    """A stream whose reads return pieces of the given sizes, in turn."""

    def __init__(self, data, sizes):
        super().__init__(data)
        self.sizes = sizes
        self.reads = 0

    def read(self, _size=-1):
        self.reads += 1
        return super().read(self.sizes[self.reads % len(self.sizes)])


hex_digits = st.text("048cf", min_size=4, max_size=4).map(str.encode)
keys = st.builds(
    lambda prefix, rest: prefix + b":" + rest.replace(b"\n", b"").replace(b"\t", b""), hex_digits, st.binary()
)


@given(
    lines=st.lists(st.builds(lambda key, rest: key + b"\t" + rest.replace(b"\n", b""), keys, st.binary())),
    points=st.sets(hex_digits),
    sizes=st.lists(st.integers(1, 100), min_size=1),
    ends=st.booleans(),
)
def test_any_lines_are_cut_at_any_points_whatever_the_blocks(lines, points, sizes, ends):
    lines.sort(key=lambda line: line.partition(b"\t")[0])
    data = b"".join(line + b"\n" for line in lines)
    points = sorted(points)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(region)) for region in range(len(points) + 1)]
        stream = Pieces(data if ends else data[:-1], sizes)
        cut(stream, points, lambda region: files[region].open("xb"))
        assert stream.closed
        written = [file.read_bytes() for file in files]
    assert b"".join(written) == data
    bounds = [b"", *points, b"g"]
    for region, part in enumerate(written):
        assert all(bounds[region] <= line < bounds[region + 1] for line in split_lines(part))


def test_the_input_of_a_cut_is_closed_when_a_file_cannot_be_written():
    stream = io.BytesIO(b"0000:a\tx\nffff:b\tx\n")

    def create(region):
        if region:
            raise OSError("full")
        return io.BytesIO()

    with pytest.raises(OSError, match="full"):
        cut(stream, [b"8000"], create)
    assert stream.closed
