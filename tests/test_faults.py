"""The mapper names the record on which a model raises or kills the process."""

import faulthandler
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext

import badmodels
import numpy as np
import pytest
from conftest import CHECKOUT
from hypothesis import given
from hypothesis import strategies as st
from inprocess import script

import mapper
from predictions.errors import InternalError
from predictions.formats.manifest import ModelManifest, ReleaseModels
from predictions.formats.record_line import Column
from predictions.formats.unreadable import sift
from predictions.scoring import predict as faults
from predictions.scoring.files import load_model
from predictions.scoring.model import Model, Models
from predictions.scoring.predict import Scorer

RELEASE = "20261122T154500Z"
GOOD = b"a\tAT\t250.0\t1\t0\n", b"b\t\\N\t\\N\t\\N\t0\n", b"c\tCH\t4.5\t2\t0\n"
ODD_BLOCK = b"".join(GOOD) + b"%b\n" + b"".join(line.replace(b"\t", b"2\t", 1) for line in GOOD)


@given(st.integers(1, 3000), st.data())
def test_the_first_line_that_fails_is_found_by_halving(lines, data):
    bad_numbers = data.draw(st.sets(st.integers(0, lines - 1), min_size=1, max_size=5))
    calls = []

    def fails(block):
        calls.append(block)
        return any(int(line) in bad_numbers for line in block.splitlines())

    block = b"".join(b"%d\n" % number for number in range(lines))
    assert faults.first_fault(block, fails) == b"%d" % min(bad_numbers)
    assert len(calls) <= (lines - 1).bit_length() + 1


def test_no_line_is_named_if_lines_fail_only_together():
    block = b"".join(b"%d\n" % number for number in range(100))
    assert faults.first_fault(block, lambda lines: len(lines.splitlines()) > 10) is None


def test_of_several_labels_the_record_is_named(monkeypatch):
    class Predictor:
        def predict(self, block, ends):
            if b"bad" in block:
                raise RuntimeError("no")
            return np.zeros(len(ends)), {}

        def one_thread(self):
            return nullcontext()

    features = [Column("a", "text")]
    manifests = [ModelManifest(features=features, label=Column(name, "real"), task="regression") for name in "xy"]
    models = {manifest.label.name: Model(Predictor(), manifest) for manifest in manifests}
    scorer = Scorer(Models(models, ReleaseModels(manifests)), b"1", "split s")
    records = sift(b"1\tgood\t\\N\t1\n2\tbad\t2\t\\N\n", 4, "s", 1)
    with pytest.raises(InternalError, match="split s, record 2: RuntimeError: no"):
        scorer.lines(records)
    monkeypatch.setattr(Predictor, "predict", lambda _self, block, ends: _die(block, ends))
    monkeypatch.setattr(faults.environment, "attempt", lambda: faults.TRIAL_FROM)
    with pytest.raises(InternalError, match=r"split s, record 2: scoring it kills the process \(SIGKILL\)"):
        scorer.lines(records)


def _die(block, ends):
    if b"bad" in block:
        os.kill(os.getpid(), signal.SIGKILL)
    return np.zeros(len(ends)), {}


def test_only_exceptions_count_as_raising():
    assert faults.raises(lambda block: 1 / len(block), b"")
    assert not faults.raises(lambda block: block, b"a\n")


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL", "SIGABRT"])
def test_the_signal_that_kills_a_child_is_named(name):
    def die(_block):
        faulthandler.disable()  # pytest's handler would print the stack
        os.kill(os.getpid(), signal.Signals[name])

    assert faults.killing_signal(die, b"a\n") == name


def test_a_child_that_ends_or_raises_is_not_killed(capfd):
    assert faults.killing_signal(len, b"a\n") is None
    assert faults.killing_signal(lambda block: 1 / 0, b"a\n") is None
    assert faults.killing_signal(lambda block: sys.exit(3), b"a\n") is None
    assert capfd.readouterr() == ("", "")  # the parent meets the exception too, and reports it


def test_a_child_writes_nothing_of_what_its_parent_has_buffered(tmp_path):
    script = "import sys; from predictions.scoring.predict import killing_signal; sys.stdout.write('once\\n'); "
    script += "killing_signal(len, b'a\\n')"
    ran = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True)
    assert ran.stdout == "once\n", ran.stderr


@pytest.fixture(scope="module")
def segfaulting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segfaulting")
    return folder / "model.json", badmodels.segfaulting(folder)


@pytest.fixture(scope="module")
def raising(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raising")
    return folder / "model.json", badmodels.raising(folder)


def run(model, stdin, attempt=None, process=True, **environment):
    """Run the mapper in a new process or in this one."""
    if attempt is not None:
        environment["mapreduce_task_attempt_id"] = f"attempt_1_0001_m_000000_{attempt}"
    if not process:
        return script(mapper.main, model, RELEASE, stdin=stdin, **environment)
    return subprocess.run(
        [sys.executable, str(CHECKOUT / "mapper.py"), str(model), RELEASE],
        input=stdin,
        # One thread, as in a job: a process forked after OpenMP has started threads may hang.
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
    )


@pytest.mark.parametrize("kind", ["segfaulting", "raising"])
def test_the_bad_models_score_every_record_but_one_kind(kind, request):
    model, fatal = request.getfixturevalue(kind)
    scores = load_model(model).score(b"".join(GOOD))
    assert set(scores.predictions) <= {b"0", b"1"}
    assert scores.errors == [b"\\N"] * 3
    ran = run(model, b"".join(GOOD), 2, process=kind == "segfaulting")
    assert (ran.returncode, len(ran.stdout.splitlines())) == (0, 3), ran.stderr
    assert fatal.count(b"\t") == 4


@pytest.mark.parametrize("attempt", [None, 1])
def test_a_crash_leaves_its_stack_in_the_log(segfaulting, attempt):
    model, fatal = segfaulting
    ran = run(model, ODD_BLOCK % fatal, attempt)
    assert ran.returncode == -signal.SIGSEGV
    assert b"Fatal Python error: Segmentation fault" in ran.stderr
    assert b"predict_proba" in ran.stderr
    assert b"reporter:counter" not in ran.stderr


def test_after_two_attempts_that_died_the_record_is_named(segfaulting):
    model, fatal = segfaulting
    split = {"mapreduce_map_input_file": "hdfs://x/export/part-00007", "mapreduce_map_input_start": "128"}
    ran = run(model, ODD_BLOCK % fatal, 2, **split)
    assert ran.returncode == 6
    assert (
        ran.stderr.decode().splitlines()[-1]
        == "mapper.py: split part-00007+128, record fatal: scoring it kills the process (SIGSEGV)"
    )
    assert ran.stdout == b""


def test_a_careful_attempt_gives_the_same_lines_as_any(trained):
    lines = (trained / "export" / "part-00000").read_bytes()
    plain, careful = (run(trained / "model" / "model.json", lines, attempt, attempt == 2) for attempt in (0, 2))
    assert (plain.returncode, careful.returncode) == (0, 0), careful.stderr
    assert plain.stdout == careful.stdout
    assert plain.stderr == careful.stderr


@pytest.mark.parametrize("attempt", [None, 2])
def test_a_record_at_which_the_model_raises_is_named(raising, attempt):
    model, unknown = raising
    ran = run(model, ODD_BLOCK % unknown, attempt, process=False)
    assert ran.returncode == 6
    first, *_rest, last = ran.stderr.decode().splitlines()
    assert first == "Traceback (most recent call last):"
    assert last == (
        "mapper.py: split stdin, record unknown: ValueError: Found unknown categories ['XX'] in column 0 during transform"
    )


class Raising:
    """A model that raises on each block with a record `bad`."""

    def score(self, block, _ends=None):
        if b"bad\t" in block:
            raise ValueError("Input X contains NaN.\n  Another line\nthe last")


def test_the_message_is_one_line_and_an_unreadable_line_before_does_not_move_the_blame():
    block, split = b"too\tfew\na\t1\t0\nbad\t1\t0\nc\t1\t0\n", mapper.Split("stdin", 3, b"1")
    lines = mapper.map_records([block], split, Scorer(Raising(), b"1", "split stdin").lines, Counter())
    assert b"unreadable:stdin:000000000001" in next(lines)
    with pytest.raises(InternalError) as raised:
        next(lines)
    assert str(raised.value) == ("split stdin, record bad: ValueError: Input X contains NaN. Another line the last")
