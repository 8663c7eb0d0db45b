import math
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.datasets import load_digits
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression

from predictions.errors import InputError
from predictions.formats.record_line import Column
from predictions.scoring import compiled as compiled_module
from predictions.scoring import compiler as compiler_module
from predictions.scoring.compiled import CategoryColumn, CompiledModel, NumberColumn, load
from predictions.scoring.compiler import NoCompiledFormError, bins_of, check, compile_pipeline
from predictions.scoring.files import sha256
from predictions.stages.fit import make_pipeline_for

FEATURES = [
    Column("amount", "real"),
    Column("kind", "text"),
    Column("items", "integer"),
    Column("rare", "real"),
    Column("place", "text"),
    Column("month", "integer"),
]
OF_NUMBERS = [Column("a", "real"), Column("b", "real"), Column("c", "real")]
MODEL_SHA256 = "5" * 64


def make_frame(rows, seed=0):
    """Return rows of `FEATURES` with missing values, a column that almost never has a value, and rare categories."""
    random = np.random.default_rng(seed)

    def with_missing(values):
        return np.where(random.random(rows) < 0.1, np.nan, values)

    rare = np.full(rows, np.nan)
    rare[::50] = np.arange(len(rare[::50]))
    return pd.DataFrame(
        {
            "amount": with_missing(random.normal(0, 1e-3, rows)),
            "kind": pd.Series(random.choice(np.array(["x", "y", "Zoë", np.nan], dtype=object), rows), dtype=object),
            "items": random.integers(-50, 50, rows).astype(np.float64),
            "rare": rare,
            "place": pd.Series([f"p{number}" for number in random.integers(0, 500, rows)], dtype=object),
            "month": with_missing(random.integers(0, 12, rows).astype(np.float64)),
        }
    )


FRAME = make_frame(600)
SCORE = (
    FRAME["amount"].fillna(0) * 1e3
    + (FRAME["kind"] == "x")
    + FRAME["items"] / 30
    + np.sin(FRAME["month"].fillna(3))
    + np.random.default_rng(1).normal(0, 0.3, len(FRAME))
).to_numpy()


def classes(count):
    return np.digitize(SCORE, np.quantile(SCORE, np.arange(1, count) / count))


def fitted(estimator, labels, frame=FRAME, features=FEATURES):
    return make_pipeline_for(estimator, features).fit(frame, labels)


def answers(pipeline, frame):
    return pipeline.predict_proba(frame) if hasattr(pipeline, "predict_proba") else pipeline.predict(frame)


def assert_same_bits(compiled, pipeline, frame):
    expected = np.ascontiguousarray(answers(pipeline, frame))
    predicted = np.ascontiguousarray(compiled.predict(bins_of(compiled, frame)))
    assert (predicted.shape, predicted.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(predicted.view(np.uint64), expected.view(np.uint64))


@pytest.fixture(scope="module")
def pipeline():
    return fitted(HistGradientBoostingClassifier(max_iter=10), classes(2))


@pytest.fixture(scope="module")
def compiled(pipeline):
    return compile_pipeline(pipeline, FEATURES)


@pytest.fixture
def saved(compiled, tmp_path):
    """A compiled model in a file."""
    compiled.save(tmp_path / "model.npz", MODEL_SHA256, 7)
    return tmp_path / "model.npz"


@pytest.mark.parametrize(
    ("estimator", "outcomes"),
    [
        (HistGradientBoostingClassifier(max_iter=20), 2),
        (HistGradientBoostingClassifier(max_iter=6), 3),
        (HistGradientBoostingClassifier(max_iter=4, max_leaf_nodes=7), 10),
        (HistGradientBoostingClassifier(max_iter=5, max_leaf_nodes=63, min_samples_leaf=2), 2),
        (HistGradientBoostingClassifier(max_iter=10, categorical_features=[4, 5]), 2),
        (HistGradientBoostingClassifier(max_iter=10, categorical_features=[1, 3, 4]), 3),  # also numbers
        (HistGradientBoostingRegressor(max_iter=10), None),
        (HistGradientBoostingRegressor(max_iter=5, loss="absolute_error"), None),
        (HistGradientBoostingRegressor(max_iter=5, loss="quantile", quantile=0.2), None),
        (HistGradientBoostingRegressor(max_iter=10, loss="poisson"), None),
        (HistGradientBoostingRegressor(max_iter=10, loss="gamma"), None),
        (GradientBoostingClassifier(n_estimators=10), 2),
        (GradientBoostingClassifier(n_estimators=4), 3),
        (GradientBoostingClassifier(n_estimators=2, learning_rate=1), 10),
        (GradientBoostingClassifier(n_estimators=3, max_depth=None, max_leaf_nodes=63), 2),
        (GradientBoostingRegressor(n_estimators=10), None),
        (GradientBoostingRegressor(n_estimators=5, loss="huber"), None),
    ],
    ids=str,
)
def test_predictions_are_scikit_learns_to_the_last_bit(estimator, outcomes, tmp_path):
    pipeline = fitted(estimator, classes(outcomes) if outcomes else np.exp(SCORE))
    compiled = compile_pipeline(pipeline, FEATURES)
    assert check(compiled, pipeline, FRAME) > len(FRAME) + 300
    other = make_frame(8_500, seed=2)  # more than a chunk; with categories that training did not see
    assert_same_bits(compiled, pipeline, other)
    for few in (1, 2, 200):  # numpy adds ten classes of a single row in another order
        assert_same_bits(compiled, pipeline, other[:few])
    compiled.save(tmp_path / "model.npz", MODEL_SHA256, 7)
    loaded = load(tmp_path / "model.npz", sha256(tmp_path / "model.npz"), MODEL_SHA256)
    assert_same_bits(loaded, pipeline, other)


@pytest.mark.parametrize("seed", [0, 1])
def test_ten_classes_of_64_columns_and_two_of_100(seed):
    images = load_digits()
    columns = [Column(f"c{number}", "real") for number in range(images.data.shape[1])]
    frame = pd.DataFrame(images.data, columns=[column.name for column in columns])
    estimator = HistGradientBoostingClassifier(max_iter=3) if seed else GradientBoostingClassifier(n_estimators=2)
    pipeline = fitted(estimator, images.target, frame, columns)
    assert check(compile_pipeline(pipeline, columns), pipeline, frame) > len(frame)

    random = np.random.default_rng(seed)
    columns = [Column(f"c{number}", "real") for number in range(100)]
    frame = pd.DataFrame(random.normal(size=(1_000, 100)), columns=[column.name for column in columns])
    labels = (frame.sum(axis=1) > 0).to_numpy().astype(int)
    pipeline = fitted(HistGradientBoostingClassifier(max_iter=10), labels, frame, columns)
    assert check(compile_pipeline(pipeline, columns), pipeline, frame) > len(frame)


@pytest.mark.parametrize(
    "estimator",
    [
        HistGradientBoostingClassifier(max_iter=5),
        HistGradientBoostingClassifier(max_iter=5, categorical_features=[0, 1]),
        GradientBoostingClassifier(n_estimators=5),
    ],
    ids=str,
)
def test_text_alone(estimator):
    features, frame = [Column("kind", "text"), Column("place", "text")], FRAME[["kind", "place"]]
    pipeline = fitted(estimator, classes(2), frame, features)
    assert check(compile_pipeline(pipeline, features), pipeline, frame) > len(frame)


def test_columns_without_a_value():  # HistGradientBoosting refuses them
    features = [Column("kind", "text"), Column("amount", "real"), Column("nothing", "real")]
    frame = FRAME[["kind", "amount"]].assign(kind=pd.Series(np.nan, FRAME.index, dtype=object), nothing=np.nan)
    pipeline = fitted(GradientBoostingClassifier(n_estimators=5), classes(2), frame, features)
    assert check(compile_pipeline(pipeline, features), pipeline, frame) > len(frame)


@pytest.mark.parametrize("joint_bytes", [1, 10_000])
def test_tables_of_any_size_give_the_same(joint_bytes, pipeline, monkeypatch):
    monkeypatch.setattr(compiled_module, "_JOINT_BYTES", joint_bytes)
    assert_same_bits(compile_pipeline(pipeline, FEATURES), pipeline, make_frame(8_500, seed=2))


NUMBERS = st.floats(width=32) | st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 1e300, -1e300, 2.0**-1022])


@settings(max_examples=12, phases=[Phase.generate])  # a smaller forest is not easier to understand
@given(st.data())
def test_random_forests_of_random_rows(data):
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rows = data.draw(st.integers(20, 60))
    pool = data.draw(st.lists(st.floats(allow_infinity=False, width=32), min_size=2, max_size=20, unique=True))
    numbers = np.array(pool) * data.draw(st.sampled_from([1.0, 1e-8, 1e-30]))
    frame = pd.DataFrame({column.name: random.choice(numbers, rows) for column in OF_NUMBERS})
    outcomes = data.draw(st.sampled_from([2, 3, 9]))
    labels = np.arange(rows) % outcomes
    leaves = data.draw(st.integers(2, 63))
    is_histogram = data.draw(st.booleans())
    if is_histogram:
        estimator = HistGradientBoostingClassifier(
            max_iter=data.draw(st.integers(1, 9)), max_leaf_nodes=leaves, min_samples_leaf=1
        )
    else:
        estimator = GradientBoostingClassifier(
            n_estimators=data.draw(st.integers(1, 9)), max_depth=None, max_leaf_nodes=leaves
        )
        frame = frame.where(frame.abs() < 1e30)  # else its own squares overflow
        frame.iloc[0] = 0.0
    pipeline = fitted(estimator, labels, frame, OF_NUMBERS)
    compiled = compile_pipeline(pipeline, OF_NUMBERS)
    check(compiled, pipeline, frame)
    columns = {}
    for column, number_column in zip(OF_NUMBERS, compiled.columns, strict=True):
        values = np.array(data.draw(st.lists(NUMBERS, min_size=30, max_size=30)))
        is_refused = (values < number_column.lowest) | (values > number_column.highest)
        columns[column.name] = np.where(is_refused, np.nan, values)
    assert_same_bits(compiled, pipeline, pd.DataFrame(columns))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_number_is_refused_exactly_where_scikit_learn_raises(scale):
    frame = pd.DataFrame({"a": np.array([0.0, 1.0, 2.0, np.nan] * 10) * scale})
    features = [Column("a", "real")]
    pipeline = fitted(GradientBoostingRegressor(n_estimators=2), np.arange(40.0), frame, features)
    compiled = compile_pipeline(pipeline, features)
    [column] = compiled.columns
    for bound, beyond in ((column.highest, math.inf), (column.lowest, -math.inf)):
        assert_same_bits(compiled, pipeline, pd.DataFrame({"a": [bound]}))
        refused = np.array([math.nextafter(bound, beyond)])
        with np.errstate(over="ignore"), pytest.raises(ValueError, match="infinity or a value too large"):
            pipeline.predict(pd.DataFrame({"a": refused}))
        with pytest.raises(ValueError, match="column 0 has a number below"):
            compiled.bins_of_numbers(0, refused)


def by_hand(leaves, baseline, dtype=np.int32):
    """Return a regressor with trees of one leaf each."""
    column = NumberColumn(np.array([1.0]), -math.inf, math.inf)
    masks = np.ones((column.bins, len(leaves)), dtype=dtype)
    return CompiledModel([column], masks, np.array(leaves)[:, None], np.array([baseline]), "identity")


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("rows", [1, 1000])  # few are added all at once
def test_leaves_are_added_in_the_order_of_the_trees(rows, dtype):
    bins = [np.zeros(rows, dtype=np.intp)]
    for leading in range(10):  # in each place of a group
        zeros = [0.0] * leading
        # 1e16 + 1 is 1e16.
        assert set(by_hand([*zeros, 1.0, -1e16], 1e16, dtype).predict(bins)) == {0.0}
        assert set(by_hand([*zeros, -1e16, 1.0], 1e16, dtype).predict(bins)) == {1.0}


def test_a_model_of_which_one_bit_differs_is_no_compiled_form(pipeline, compiled):
    leaves = compiled.leaves.copy()
    leaves[-1] *= 1 + 1e-13
    wrong = CompiledModel(compiled.columns, compiled.masks, leaves, compiled.baseline, compiled.link)
    with pytest.raises(NoCompiledFormError, match="not scikit-learn's to the last bit"):
        check(wrong, pipeline, FRAME)


def test_a_threshold_that_is_one_step_off_is_noticed_by_the_rows_that_are_made_up(pipeline, compiled):
    for step in (-math.inf, math.inf):
        columns = list(compiled.columns)
        columns[0] = NumberColumn(np.nextafter(columns[0].thresholds, step), -math.inf, math.inf)
        wrong = CompiledModel(columns, compiled.masks, compiled.leaves, compiled.baseline, compiled.link)
        others = make_frame(100, seed=3)  # none of them is a threshold
        assert_same_bits(wrong, pipeline, others)
        with pytest.raises(NoCompiledFormError, match="to the last bit"):
            check(wrong, pipeline, others)


class Subclass(HistGradientBoostingClassifier):
    pass


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (RandomForestClassifier(n_estimators=2), "RandomForestClassifier is not an estimator that is compiled"),
        (LogisticRegression(), "LogisticRegression is not an estimator that is compiled"),
        (Subclass(max_iter=2), "Subclass is not an estimator that is compiled"),
        (GradientBoostingClassifier(n_estimators=2, init="zero"), "init of its own"),
        (GradientBoostingClassifier(n_estimators=2, init=LogisticRegression()), "init of its own"),
        (GradientBoostingClassifier(n_estimators=2, loss="exponential"), "with the loss ExponentialLoss"),
        (
            HistGradientBoostingClassifier(max_iter=2, max_leaf_nodes=64, min_samples_leaf=2),
            "a tree has 64 leaves, more than 63",
        ),
        (GradientBoostingRegressor(n_estimators=1, max_depth=None), r"a tree has \d+ leaves, more than 63"),
    ],
    ids=str,
)
def test_what_has_no_compiled_form_has_a_reason(estimator, reason):
    with pytest.raises(NoCompiledFormError, match=reason):
        compile_pipeline(fitted(estimator, classes(2)), FEATURES)


def test_tables_that_are_too_large_are_no_compiled_form(monkeypatch, pipeline):
    monkeypatch.setattr(compiler_module, "MAX_TABLE_BYTES", 1_000)
    with pytest.raises(NoCompiledFormError, match=r"its tables would take 0 MB; column place has \d+ values"):
        compile_pipeline(pipeline, FEATURES)


def test_a_scikit_learn_with_other_attributes_is_no_compiled_form():
    other = fitted(HistGradientBoostingClassifier(max_iter=2), classes(2))
    del other[-1]._predictors
    with pytest.raises(NoCompiledFormError, match=r"scikit-learn \d\S+ is not known to the compiler: .*_predictors"):
        compile_pipeline(other, FEATURES)


def test_a_bin_out_of_range_is_an_error(compiled):
    bins = bins_of(compiled, FRAME)
    for column, limit in enumerate(column.bins for column in compiled.columns):
        for bin_ in (limit - 1, limit, -1, 2**40):
            changed = [column_bins.copy() for column_bins in bins]
            changed[column][-1] = bin_
            if bin_ == limit - 1:
                compiled.predict(changed)
            else:
                with pytest.raises(IndexError, match=f"column {column} has {limit} bins"):
                    compiled.predict(changed)


def test_columns_of_different_lengths_are_an_error(compiled):
    bins = bins_of(compiled, FRAME)
    with pytest.raises(ValueError, match="different numbers of rows"):
        compiled.predict([bins[0][:1], *bins[1:]])
    with pytest.raises(ValueError, match="shorter|longer"):
        compiled.predict(bins[:-1])


def test_a_column_is_read_as_what_it_is(compiled):
    with pytest.raises(ValueError, match="column 1 has categories"):
        compiled.bins_of_numbers(1, np.zeros(1))
    with pytest.raises(ValueError, match="column 0 has numbers"):
        compiled.bins_of_categories(0, ["x"])


def test_no_rows_have_no_predictions(compiled):
    assert compiled.predict([np.empty(0, dtype=np.intp)] * len(FEATURES)).shape == (0, 2)


def test_sums_have_scikit_learns_probabilities():
    sums = np.random.default_rng(0).normal(0, 5, 20_000)  # numpy's exp may differ in a few of so many
    for extremes in ([], [-800.0, -709.79, -709.78, 0.0, 800.0]):  # exp overflows beyond 709.78
        values = np.concatenate([sums, extremes])
        np.testing.assert_array_equal(compiled_module._expit(values), expit(values))


def test_the_same_model_gives_the_same_bytes(saved, compiled, tmp_path):
    compiled.save(tmp_path / "again.npz", MODEL_SHA256, 7)
    assert (tmp_path / "again.npz").read_bytes() == saved.read_bytes()


def test_a_model_comes_back_with_all_that_it_had(saved, compiled):
    loaded = load(saved, sha256(saved), MODEL_SHA256)
    with np.load(saved) as archive:
        assert (archive["model_sha256"], archive["compared"]) == (MODEL_SHA256, 7)
    assert (loaded.link, loaded.by_row) == (compiled.link, compiled.by_row)
    for column, before in zip(loaded.columns, compiled.columns, strict=True):
        assert vars(column).keys() == vars(before).keys()
        assert all(
            np.array_equal(one, other) for one, other in zip(vars(column).values(), vars(before).values(), strict=True)
        )


def test_any_text_is_a_category(tmp_path):
    texts = ("", "\0", "a\0", "Zoë", "x" * 1000, "\N{GRINNING FACE}")
    column = CategoryColumn(texts)
    masks = np.ones((column.bins, 1), dtype=np.int32)
    model = CompiledModel([column], masks, np.zeros((1, 1)), np.zeros(1), "identity")
    model.save(tmp_path / "model.npz", MODEL_SHA256, 7)
    loaded = load(tmp_path / "model.npz", sha256(tmp_path / "model.npz"), MODEL_SHA256)
    assert loaded.columns == (column,)
    assert loaded.bins_of_categories(0, [*texts, "other", math.nan]).tolist() == list(range(column.bins))


def test_a_file_that_was_changed_is_refused(saved):
    digest, content = sha256(saved), saved.read_bytes()
    for changed in (content[:-1], content[: len(content) // 2], b"", bytes([content[0] ^ 1]) + content[1:]):
        saved.write_bytes(changed)
        with pytest.raises(InputError, match=r"model.npz: its sha256 is .* changed, cut off or replaced; restore it"):
            load(saved, digest, MODEL_SHA256)
    saved.unlink()
    with pytest.raises(InputError, match=r"model.npz: No such file or directory; restore it"):
        load(saved, digest, MODEL_SHA256)


def test_a_file_of_another_model_is_refused(saved):
    with pytest.raises(InputError, match=r"model.npz: was compiled from the model 5555.*, not from 6666"):
        load(saved, sha256(saved), "6" * 64)


def rewrite(path, **changes):
    """Change arrays of a compiled model's file."""
    with np.load(path) as archive:
        arrays = dict(archive) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_a_file_of_another_format_is_refused(saved):
    rewrite(saved, format=np.array(2))
    with pytest.raises(InputError, match=r"model.npz: has format 2, but this version reads format 1"):
        load(saved, sha256(saved), MODEL_SHA256)


def test_objects_are_refused(saved):
    rewrite(saved, thresholds=np.array([print], dtype=object))
    with pytest.raises(InputError, match=r"model.npz: not a compiled model: .*allow_pickle"):
        load(saved, sha256(saved), MODEL_SHA256)


def with_value(array, place, value):
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("masks", lambda masks: None),
        ("masks", lambda masks: masks[1:]),
        ("masks", lambda masks: masks[:, 1:]),
        ("masks", lambda masks: masks.astype(np.int16)),
        ("masks", lambda masks: masks.astype(np.float64)),
        ("masks", lambda masks: with_value(masks, 0, -1)),
        ("leaves", lambda leaves: leaves[:, :5]),
        ("leaves", lambda leaves: leaves[1:]),
        ("leaves", lambda leaves: np.zeros((len(leaves), 32))),
        ("leaves", lambda leaves: leaves.astype(np.float32)),
        ("baseline", lambda baseline: np.zeros(0)),
        ("baseline", lambda baseline: np.zeros(2)),
        ("link", lambda link: np.array("softmax")),
        ("link", lambda link: np.array("other")),
        ("link", lambda link: np.array(1)),
        ("bins", lambda bins: bins[1:]),
        ("bins", lambda bins: bins + 1),
        ("bins", lambda bins: bins * 0),
        ("bins", lambda bins: bins.astype(np.float64)),
        ("is_number", lambda is_number: ~is_number),
        ("thresholds", lambda thresholds: thresholds[::-1].copy()),
        ("thresholds", lambda thresholds: with_value(thresholds, 0, np.nan)),
        ("thresholds", lambda thresholds: thresholds[1:]),
        ("ranges", lambda ranges: ranges[1:]),
        ("categories", lambda categories: categories[1:]),
        ("categories", lambda categories: with_value(categories, 0, 255)),
        ("category_bytes", lambda category_bytes: with_value(category_bytes, 0, -1)),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(saved, name, change):
    with np.load(saved) as archive:
        changed = change(archive[name])
    rewrite(saved, **{name: changed})
    with pytest.raises(InputError, match=r"model.npz: not a compiled model: .*; restore it, or start a new release"):
        load(saved, sha256(saved), MODEL_SHA256)


def test_what_is_no_archive_of_arrays_is_refused(saved):
    content = saved.read_bytes()
    with zipfile.ZipFile(saved, "w") as archive:
        archive.writestr("format.npy", b"text")
    not_an_array = saved.read_bytes()
    for other in (b"", b"text", content[:1000], not_an_array):
        saved.write_bytes(other)
        with pytest.raises(InputError, match=r"model.npz: not a compiled model"):
            load(saved, sha256(saved), MODEL_SHA256)


def test_a_compiled_model_is_loaded_and_scores_without_scikit_learn_and_pandas(saved, compiled):
    script = f"""
import sys
from pathlib import Path
import numpy as np
from predictions.scoring.compiled import load
model = load(Path({str(saved)!r}), {sha256(saved)!r}, {MODEL_SHA256!r})
model.predict([np.zeros(3, dtype=np.intp)] * len(model.columns))
print(sorted({{name.partition(".")[0] for name in sys.modules}} & {{"pandas", "scipy", "sklearn", "skops", "xxhash"}}))
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert process.stdout == "[]\n"
