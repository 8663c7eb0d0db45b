"""Fields of record lines become the bins of a compiled model: the predictions are those of scikit-learn itself."""

import random
import subprocess
import sys
from threading import Thread

import numpy as np
import pytest
from conftest import CHECKOUT
from hypothesis import given
from hypothesis import strategies as st

from predictions.formats.manifest import ModelManifest
from predictions.formats.record_line import Column, field_ends, write_rows
from predictions.scoring import bins
from predictions.scoring.bins import CompiledPredictor
from predictions.scoring.compiler import compile_pipeline
from predictions.scoring.estimator import EstimatorPredictor
from predictions.scoring.frame import FrameReader
from predictions.settings import ModelSettings
from predictions.stages.fit import make_estimator, make_pipeline_for

FEATURES = [Column("kind", "text"), Column("amount", "real"), Column("items", "integer"), Column("day", "date")]
KINDS = [b"a", b"AT", b"C\xc3\xb4te d'Ivoire", b"tab\\there", b"exactly7", b"seven__", b"\\N", b""]
NUMBERS = [b"0", b"-0.0", b"1", b"1.0", b"01", b"1e0", b" 1", b"2.5", b"123456.789", b"1e-310", b"\\N", b"3e38", b"nan"]
BAD_NUMBERS = [b"twelve", b"1_000", b"inf", b"1e300", b"", b"1\\0"]
DAYS = [b"2026-01-01", b"2026-01-02 10:00:00", b"\\N", b"tomorrow", b"2026-02-30"]
kinds = st.sampled_from([*KINDS, b"\xff", b"unknown"]) | st.text(alphabet="ab", max_size=9).map(str.encode)
numbers = st.sampled_from([*NUMBERS, *BAD_NUMBERS]) | st.integers(-20, 500).map(lambda number: b"%d" % number)
rows = st.tuples(kinds, numbers, numbers, st.sampled_from(DAYS))


def lines_of(rows):
    return write_rows([b"id", *row, b"\\N"] for row in rows)


def predictors_of(estimator, largest=100.0, **params):
    """Return the predictor of an estimator's compiled form, and that of the estimator itself."""
    choose = random.Random(1).choice
    block = lines_of(
        (
            choose(KINDS),
            b"%.4f" % (number % 97 / 97 * largest),
            b"%d" % (number % 13),
            b"2026-01-%02d" % (number % 28 + 1),
        )
        for number in range(600)
    )
    frame, _bad_rows = FrameReader(FEATURES).read(block)
    labels = [int(number % 97 > 40) + int(number % 13 > 8) for number in range(600)]
    settings = ModelSettings(label="label", features=["kind"], estimator=estimator, params=params, seed=1)
    pipeline = make_pipeline_for(make_estimator(settings), FEATURES).fit(frame, labels)
    manifest = ModelManifest(features=FEATURES, classes=[0, 1, 2])
    return CompiledPredictor(compile_pipeline(pipeline, FEATURES), FEATURES), EstimatorPredictor(pipeline, manifest)


@pytest.fixture(scope="module")
def predictors():
    return predictors_of("sklearn.ensemble.HistGradientBoostingClassifier", max_iter=8)


def predict(predictor, block):
    return predictor.predict(block, field_ends(block, len(FEATURES) + 2))


def assert_same(predictors, block):
    (compiled, bad_rows), (exact, exact_bad_rows) = (predict(predictor, block) for predictor in predictors)
    assert bad_rows == exact_bad_rows
    good = [row for row in range(len(exact)) if row not in bad_rows]
    assert compiled[good].tobytes() == np.ascontiguousarray(exact[good]).tobytes()


@given(st.lists(rows, min_size=1))
def test_any_field_has_scikit_learns_prediction_and_reason(predictors, lines):
    # The predictor keeps what it has looked up, so later examples meet tables of earlier ones.
    assert_same(predictors, lines_of(lines))


@pytest.mark.parametrize("distinct", [10, 2_000, 20_000])
def test_columns_of_few_and_of_many_values(distinct):
    """Few are looked up in a table; there is no table for very many."""
    predictors = predictors_of("sklearn.ensemble.HistGradientBoostingClassifier", max_iter=3)
    lines = [(b"%d" % (number % 9), b"%d.25" % (number % distinct), b"1", b"\\N") for number in range(20_000)]
    for _time in range(2):
        assert_same(predictors, lines_of(lines))
    words = predictors[0]._columns[1]._known.table.words
    assert (words != bins._NOTHING).sum() == (distinct if distinct < 20_000 else 0)


def test_a_field_is_its_bytes_and_its_length(predictors):
    # As numbers in memory, these differ by their length alone.
    lines = [
        (b"a", b"1", b"1", b"\\N"),
        (b"a\0", b"1", b"1", b"\\N"),
        (b"", b"1", b"1", b"\\N"),
        (b"\0", b"1", b"1", b"\\N"),
    ]
    words = bins._words(b"a\ta\0\t\t\0", np.array([0, 2, 5, 6]), np.array([1, 2, 0, 1]))
    assert len(set(words.tolist())) == 4
    assert_same(predictors, lines_of(lines * 50))


def test_what_is_kept_of_fields_is_bounded(predictors, monkeypatch):
    monkeypatch.setattr(bins, "MEMO_BYTES", 100_000)
    for start in range(0, 20_000, 1_000):
        assert_same(predictors, lines_of((b"a", b"%d" % (start + number), b"1", b"\\N") for number in range(1_000)))
        assert len(predictors[0]._columns[1]._known.bins) < 3_000


def test_a_number_that_makes_scikit_learn_raise_fails_its_record_alone():
    # Divided by the deviation of its column, which is below 1, the number does not fit a float32.
    predictors = predictors_of("sklearn.ensemble.GradientBoostingClassifier", largest=0.1, n_estimators=5)
    good, bad = (b"a", b"0.01", b"2", b"2026-01-01"), (b"a", b"-3e38", b"2", b"2026-01-01")
    block = lines_of([good, bad, good])
    assert predict(predictors[0], block)[1] == {1: "amount: too large a number"}
    assert_same(predictors, block)
    # A value that is not of its column's type is the reason, whichever column comes first.
    assert_same(predictors, lines_of([(b"a", b"-3e38", b"x", b"2026-01-01"), good]))


def test_threads_share_a_predictor(predictors, monkeypatch):
    monkeypatch.setattr(bins, "MEMO_BYTES", 20_000)  # so that what is known is replaced all the time
    errors = []

    def look_up(thread):
        for number in range(300):
            value = b"x%d" % number if number % 3 else b"%d.%d" % (number, thread)
            reason = {0: "amount: not a number"} if number % 3 else {}
            try:
                found = predict(predictors[0], lines_of([(b"a", value, b"1", b"\\N")]))[1]
            except Exception as error:
                found = error
            if found != reason:
                errors.append((value, found))

    threads = [Thread(target=look_up, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_table_is_made_for_large_blocks_alone_and_when_it_has_grown(monkeypatch):
    made, make = [], bins._make_table
    monkeypatch.setattr(bins, "_make_table", lambda known: made.append(known.short) or make(known))
    compiled, _exact = predictors_of("sklearn.ensemble.HistGradientBoostingClassifier", max_iter=2)
    for number in range(50):
        predict(compiled, lines_of([(b"a", b"%d" % number, b"bad", b"\\N")]))
    assert made == []
    for last in (100, 500, 520, 900):
        predict(compiled, lines_of((b"\\N", b"%d" % (number % last), b"bad", b"\\N") for number in range(1_000)))
    assert [short for short in made if short > 10] == [100, 500, 900]


def test_a_task_with_a_compiled_model_imports_neither_pandas_nor_scikit_learn(trained):
    code = "import sys, mapper; mapper.main(*sys.argv[1:]); print(*sorted(sys.modules), file=sys.stderr)"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(trained / "model" / "model.json"), "20261122T154500Z"],
        input=(trained / "export" / "part-00000").read_bytes(),
        env={"PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
    )
    assert ran.returncode == 0, ran.stderr
    modules = ran.stderr.split()
    assert b"predictions.scoring.compiled" in modules
    assert not {b"pandas", b"sklearn", b"scipy", b"skops", b"threadpoolctl"} & set(modules)
    assert ran.stdout.count(b"\n") == 400
