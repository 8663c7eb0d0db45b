import json
import math
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import numpy as np
import pandas as pd
import pytest
import skops.io
from conftest import CHECKOUT
from hypothesis import given
from hypothesis import strategies as st
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import FunctionTransformer
from skops.io._trusted_types import SKLEARN_ESTIMATOR_TYPE_NAMES, SKLEARN_INTERNAL_TYPE_NAMES

from predictions.errors import InputError
from predictions.formats.manifest import Contributions, ModelManifest
from predictions.formats.prediction_line import MAX_CELL_BYTES
from predictions.formats.record_line import Column, field_ends, write_rows
from predictions.scoring import estimator as estimators
from predictions.scoring.estimator import EstimatorPredictor
from predictions.scoring.files import load_model, save_model, sha256
from predictions.scoring.model import LARGEST_VALUE, Model, _are_close
from predictions.scoring.numbers import format_numbers, format_probabilities
from predictions.stages.fit import make_pipeline_for


@pytest.fixture
def saved(trained, tmp_path):
    """A copy of a trained model's folder."""
    return shutil.copytree(trained / "model", tmp_path / "model")


@pytest.fixture
def uncompiled(saved):
    """The same without its compiled form, so that scikit-learn scores."""
    (saved / "model.npz").unlink()
    return change(saved, compiled=None).parent


def change(saved, **changes):
    path = saved / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_a_model_comes_back(saved):
    model = load_model(saved / "model.json")
    assert [column.name for column in model.manifest.features] == ["country", "amount", "items"]
    assert len(model.manifest.golden) == 5


def test_another_file_is_refused_before_it_is_opened(uncompiled):
    (uncompiled / "model.skops").write_bytes(b"PK\x03\x04 anything")
    with pytest.raises(InputError, match="sha256 is .* was changed or replaced"):
        load_model(uncompiled / "model.json")


def test_another_compiled_file_is_refused_before_it_is_opened(saved):
    (saved / "model.npz").write_bytes(b"PK\x03\x04 anything")
    with pytest.raises(InputError, match="model.npz: its sha256 is .* was changed, cut off or replaced"):
        load_model(saved / "model.json")


def test_another_numpy_is_refused_by_a_compiled_model(saved):
    versions = json.loads((saved / "model.json").read_text())["versions"]
    with pytest.raises(InputError, match=r"trained with numpy 1\.0\.0, this Python has .*install numpy==1\.0\.0"):
        load_model(change(saved, versions=versions | {"numpy": "1.0.0", "scikit-learn": "1.0.0"}))


def test_a_compiled_model_of_other_columns_or_classes_is_refused(saved):
    manifest = json.loads((saved / "model.json").read_text())
    for changes in ({"features": manifest["features"][::-1]}, {"classes": [0, 1, 2]}, {"classes": None}):
        with pytest.raises(InputError, match=r"model\.npz: is for other columns or classes"):
            load_model(change(saved, **manifest | changes))


def test_a_python_without_the_library_that_scores_is_told_what_to_do(uncompiled, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    with pytest.raises(InputError, match=r"needs scikit-learn \d.*, and this Python has none: .*predictions pack"):
        load_model(uncompiled / "model.json")


def test_golden_records_are_replayed_to_the_last_digit_by_a_compiled_model_alone(saved):
    golden = json.loads((saved / "model.json").read_text())["golden"]
    probability = golden[2]["probability"]
    golden[2]["probability"] = probability[:-1] + ("1" if probability[-1] != "1" else "2")
    with pytest.raises(InputError, match="does not predict what it did"):
        load_model(change(saved, golden=golden))
    load_model(change(saved, golden=golden, compiled=None))


def test_another_scikit_learn_is_refused(uncompiled):
    versions = json.loads((uncompiled / "model.json").read_text())["versions"]
    with pytest.raises(InputError, match=r"trained with scikit-learn 1\.0\.0, this Python has .*install"):
        load_model(change(uncompiled, versions=versions | {"scikit-learn": "1.0.0"}))


def test_other_answers_to_the_golden_records_are_refused(saved):
    golden = json.loads((saved / "model.json").read_text())["golden"]
    golden[2]["probability"] = "0.9999"
    with pytest.raises(InputError, match="does not predict what it did"):
        load_model(change(saved, golden=golden))


def test_the_same_estimator_gives_the_same_file(tmp_path):
    files = []
    for number in range(2):
        made = [np.arange(number)]  # so that memory addresses differ
        trees = RandomForestClassifier(n_estimators=3, random_state=0).fit(np.eye(8), [0, 1] * 4)
        path = tmp_path / f"{number}.skops"
        estimators.save(trees, path)
        files.append(path.read_bytes())
        assert made
    assert files[0] == files[1]
    code = "import sys, numpy as np; from pathlib import Path; from predictions.scoring.estimator import load; "
    code += "print(load(Path(sys.argv[1])).predict_proba(np.eye(8)).tolist())"
    fresh = subprocess.run(
        [sys.executable, "-c", code, path],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(fresh.stdout) == trees.predict_proba(np.eye(8)).tolist()


def test_a_number_that_makes_scikit_learn_raise_fails_its_record_alone():
    columns = [Column("kind", "text"), Column("small", "real"), Column("large", "real")]
    frame = pd.DataFrame({"kind": ["a", "b"] * 20, "small": np.linspace(0, 1e-3, 40), "large": np.linspace(0, 1e6, 40)})
    estimator = GradientBoostingClassifier(n_estimators=2, init="zero")  # which has no compiled form
    pipeline = make_pipeline_for(estimator, columns).fit(frame, [0, 1] * 20)
    manifest = ModelManifest(features=columns, classes=[0, 1])
    model = Model(EstimatorPredictor(pipeline, manifest), manifest)
    lines = lines_of((b"a", b"1e-4", b"5"), (b"b", b"3e38", b"5"), (b"a", b"1", b"3e38"), (b"a", b"1e-4", b"5"))
    scores = model.score(lines)
    assert scores.errors == [b"\\N", b"small: too large a number", b"\\N", b"\\N"]
    alone = model.score(lines_of((b"a", b"1e-4", b"5")))
    assert scores.probabilities[0] == scores.probabilities[3] == alone.probabilities[0]


def test_types_that_were_not_reviewed_are_refused(uncompiled):
    path = uncompiled / "model.skops"
    skops.io.dump(FunctionTransformer(print), path)
    with pytest.raises(InputError, match=r"not reviewed: .*print"):
        load_model(change(uncompiled, sha256=sha256(path)))


def test_every_trusted_type_exists_and_one_is_a_function():
    functions = []
    for name in estimators.TRUSTED:
        module, _dot, attribute = name.rpartition(".")
        trusted = getattr(__import__(module, fromlist=[attribute]), attribute)
        functions += [] if isinstance(trusted, type) else [name]
    assert functions == ["sklearn.utils.validation.check_array"]


def test_no_type_is_trusted_that_skops_trusts():
    assert not set(estimators.TRUSTED) & set(SKLEARN_ESTIMATOR_TYPE_NAMES + SKLEARN_INTERNAL_TYPE_NAMES)


def test_a_model_that_raises_for_its_golden_records_is_refused_with_one_line(uncompiled):
    manifest = json.loads((uncompiled / "model.json").read_text())
    names = [feature | {"name": f"other {feature['name']}"} for feature in manifest["features"]]
    with pytest.raises(InputError, match=r"raises for the records .* when it was trained: ValueError: .*; restore"):
        load_model(change(uncompiled, features=names))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not the expected JSON"), ('{"format": 99}', "has format 99, but this version reads")],
)
def test_a_manifest_that_cannot_be_read_is_named(saved, text, message):
    (saved / "model.json").write_text(text)
    with pytest.raises(InputError, match=message):
        load_model(saved / "model.json")


def test_a_missing_model_is_named(saved, tmp_path):
    with pytest.raises(InputError, match="predictions train"):
        load_model(tmp_path / "model.json")
    (saved / "model.npz").unlink()
    with pytest.raises(InputError, match=r"model\.npz: No such file"):
        load_model(saved / "model.json")
    (saved / "model.skops").unlink()
    with pytest.raises(InputError, match=r"model\.skops: No such file"):
        load_model(change(saved, compiled=None))


def test_an_estimator_that_skops_cannot_save_is_refused(saved, tmp_path):
    estimator = LinearRegression()
    estimator.extra = lambda: None
    with pytest.raises(InputError, match="not reviewed|cannot be saved"):
        save_model(estimator, load_model(saved / "model.json").manifest, tmp_path)


NUMBERS = [Column("a", "real"), Column("b", "real")]


def model_of(estimator, classes=None, features=NUMBERS):
    manifest = ModelManifest(features=features, classes=classes)
    return Model(EstimatorPredictor(estimator, manifest), manifest)


def lines_of(*rows):
    return write_rows([b"id", *row, b"\\N"] for row in rows)


@pytest.fixture
def exploding():
    """A regressor that predicts 1e300 a - 1e300 b + 1, which is not finite for large values."""
    regressor = LinearRegression().fit(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), [1.0, 2.0, 0.0])
    regressor.feature_names_in_ = np.array(["a", "b"], dtype=object)
    regressor.coef_, regressor.intercept_ = np.array([1e300, -1e300]), 1.0
    return model_of(regressor)


def test_a_prediction_that_is_not_finite_fails_that_record_only(exploding):
    rows = [(b"0", b"0"), (b"1e20", b"0"), (b"0", b"1e20"), (b"1e20", b"1e20"), (b"1e-300", b"0")]
    with np.errstate(all="ignore"):
        values, _bad_rows = exploding.predictor.predict(lines_of(*rows), field_ends(lines_of(*rows), 4))
        # Large values of both give infinity or NaN, as the processor multiplies and adds in two steps or in one.
        assert [math.isfinite(value) for value in values] == [True, False, False, False, True]
        scores = exploding.score(lines_of(*rows))
    failed = b"prediction: not a finite number"
    assert scores.errors == [b"\\N", failed, failed, failed, b"\\N"]
    assert scores.predictions == [b"1", b"\\N", b"\\N", b"\\N", b"2"]
    assert scores.probabilities == [b"\\N"] * 5


@given(st.lists(st.floats(0, 1) | st.floats()))
def test_probabilities_have_the_digits_of_printf(values):
    values = np.array(values, dtype=np.float64)
    assert format_probabilities(values) == format_numbers(values) == [b"%.7g" % value for value in values]


def test_digits_next_to_a_tie_are_those_of_printf():
    # Times 10**7, many of these are exactly a half, though they are above or below it.
    halves = (np.random.default_rng(0).integers(10**6, 10**7, 20_000) + 0.5) / 10**7
    for values in (halves, np.nextafter(halves, 0), np.nextafter(halves, 1)):
        assert format_probabilities(values) == format_numbers(values)


def test_the_first_reason_is_kept_where_there_are_two():
    # A bad value in the record is the reason, the bad prediction its consequence.
    regressor = LinearRegression().fit([[0.0, 0.0], [1.0, 1.0]], [0.0, 1.0])
    regressor.feature_names_in_ = np.array(["a", "b"], dtype=object)
    regressor.predict = lambda frame: np.full(len(frame), np.nan)
    model = model_of(regressor)
    scores = model.score(lines_of((b"x", b"1"), (b"1", b"1")))
    assert scores.errors == [b"a: not a number", b"prediction: not a finite number"]


def test_a_probability_that_is_not_a_number_fails_the_record():
    classifier = DummyClassifier().fit(np.zeros((2, 2)), [0, 1])
    classifier.predict_proba = lambda frame: np.array([[0.25, 0.75], [np.nan, np.nan]])
    model = model_of(classifier, [0, 1])
    scores = model.score(lines_of((b"1", b"1"), (b"1", b"1")))
    assert scores.predictions == [b"1", b"\\N"]
    assert scores.probabilities == [b"0.75", b"\\N"]
    assert scores.errors == [b"\\N", b"prediction: not a finite number"]


def test_a_class_too_long_for_a_cell_fails_the_record():
    assert LARGEST_VALUE < MAX_CELL_BYTES
    # The escaped label counts, since the line holds it.
    fits, too_long = "x" * LARGEST_VALUE, "x" * (LARGEST_VALUE - 1) + "\t"
    for label, errors in (
        (fits, [b"\\N"]),
        (too_long, [b"prediction: %b bytes, more than HBase takes" % f"{LARGEST_VALUE + 1:,}".encode()]),
    ):
        model = model_of(DummyClassifier().fit(np.zeros((1, 2)), ["x"]), [label])
        scores = model.score(lines_of((b"1", b"1")))
        assert scores.errors == errors
        assert scores.predictions == ([label.encode()] if label == fits else [b"\\N"])
        assert scores.probabilities == ([b"1"] if label == fits else [b"\\N"])


def test_only_records_of_the_class_that_is_too_long_fail():
    classifier = DummyClassifier().fit(np.zeros((2, 2)), [0, 1])
    classifier.predict_proba = lambda frame: np.array([[0.75, 0.25], [0.25, 0.75]])
    model = model_of(classifier, ["short", "x" * (LARGEST_VALUE + 1)])
    scores = model.score(lines_of((b"1", b"1"), (b"1", b"1")))
    assert scores.predictions == [b"short", b"\\N"]
    assert [error == b"\\N" for error in scores.errors] == [True, False]


def test_a_model_without_golden_records_loads(tmp_path):
    # Like most estimators, this one refuses a frame without rows.
    regressor = LinearRegression().fit([[0.0, 0.0], [1.0, 1.0]], [0.0, 1.0])
    save_model(regressor, ModelManifest(features=NUMBERS), tmp_path)
    assert load_model(tmp_path / "model.json").manifest.golden == []


@pytest.mark.parametrize(
    ("now", "is_close"),
    [
        ({"a": 0.1235, "b": -0.02}, True),  # a digit
        ({"a": 0.1234, "c": 0.0199}, True),  # another one of nearly the same size is kept
        ({"a": 0.1234, "b": -0.02, "c": 1e-9}, True),
        ({"a": 0.1234, "b": 0.02}, False),
        ({"a": 0.13, "b": -0.02}, False),
        ({"b": -0.02}, False),
        (None, False),
    ],
)
def test_contributions_may_differ_by_rounding(now, is_close):
    assert _are_close({"a": 0.1234, "b": -0.02}, now) == is_close


def test_a_contribution_that_is_not_finite_fails_its_record():
    class Predictor:
        def predict(self, _block, ends):
            return np.array([1.0, 2.0]), {}

        def contributions(self, _block, _ends, outputs):
            return np.array([[0.5], [np.inf]])

    manifest = ModelManifest(
        features=[Column("a", "real")],
        task="regression",
        outputs=["contributions"],
        contributions=Contributions([0], [], [0.0]),
    )
    scores = Model(Predictor(), manifest).score(b"1\t1\t\\N\n2\t2\t\\N\n")
    assert scores.errors == [b"\\N", b"prediction: not a finite number"]
    assert [cell[1] for cell in scores.cells] == [b"\\N"] * 3
