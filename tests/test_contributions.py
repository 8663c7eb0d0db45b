import json
import math
import tracemalloc
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, SGDClassifier
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from test_compiled import FEATURES, FRAME, SCORE, classes, fitted, make_frame, rewrite, with_value
from xgboost import XGBClassifier, XGBRegressor

from predictions.errors import InputError
from predictions.formats.manifest import ModelManifest
from predictions.formats.record_line import NULL, join_lines, unescape
from predictions.scoring import contributions as contributions_module
from predictions.scoring.bins import CompiledPredictor
from predictions.scoring.compiled import load
from predictions.scoring.compiler import bins_of, compile_pipeline, sources_of
from predictions.scoring.contributions import as_json
from predictions.scoring.estimator import EstimatorPredictor
from predictions.scoring.estimator_contributions import check_kind, describe, explainer_for, raw_scores
from predictions.scoring.files import sha256
from predictions.scoring.model import Model

OTHERS = make_frame(40, seed=3)  # with categories that training did not see


def described(pipeline):
    """Return the explainer of a fitted pipeline and what the manifest keeps of it."""
    sources = sources_of(pipeline, FEATURES)
    kept = describe(pipeline, sources, len(FEATURES), FRAME)
    return explainer_for(pipeline, sources, len(FEATURES), kept.means), kept


def by_definition(worth, columns):
    """Return the Shapley values of a game: `worth` takes a set of columns."""
    sums = np.zeros(columns)
    for column in range(columns):
        others = [other for other in range(columns) if other != column]
        for size in range(columns):
            weight = math.factorial(size) * math.factorial(columns - size - 1) / math.factorial(columns)
            for chosen in combinations(others, size):
                sums[column] += weight * (worth({*chosen, column}) - worth({*chosen}))
    return sums


def goes_left(nodes, predictor, node, value):
    if math.isnan(value):
        return nodes["missing_go_to_left"][node]
    if nodes["is_categorical"][node]:
        bits = predictor.raw_left_cat_bitsets[nodes["bitset_idx"][node]]
        return bits[int(value) // 32] >> (int(value) % 32) & 1
    return value <= nodes["num_threshold"][node]


def worth_of_histogram(estimator, values, sources, output):
    """Return the game of a row: the trees, walked from their roots, a node at a time."""
    trees = [stage[output] for stage in estimator._predictors]

    def worth(columns):
        def below(predictor, node):
            nodes = predictor.nodes
            if nodes["is_leaf"][node]:
                return nodes["value"][node]
            left, right = nodes["left"][node], nodes["right"][node]
            compared = nodes["feature_idx"][node]
            if sources[compared] in columns:
                return below(predictor, left if goes_left(nodes, predictor, node, values[compared]) else right)
            records = nodes["count"].astype(float)
            shares = records[[left, right]] / records[node]
            return shares[0] * below(predictor, left) + shares[1] * below(predictor, right)

        return sum(below(tree, 0) for tree in trees)

    return worth


def worth_of_trees(trees, value_of, values, sources):
    """Return the game of a row: trees of `sklearn.tree`, walked from their roots, a node at a time."""

    def worth(columns):
        def below(tree, node):
            left, right, compared = tree.children_left[node], tree.children_right[node], tree.feature[node]
            if left == -1:
                return value_of(tree, node)
            if sources[compared] in columns:
                value = values[compared]
                is_left = tree.missing_go_to_left[node] if math.isnan(value) else value <= tree.threshold[node]
                return below(tree, left if is_left else right)
            records = tree.weighted_n_node_samples
            return (records[left] * below(tree, left) + records[right] * below(tree, right)) / records[node]

        return sum(below(tree, 0) for tree in trees)

    return worth


@pytest.mark.parametrize(
    ("estimator", "outcomes"),
    [
        (HistGradientBoostingClassifier(max_iter=4, max_leaf_nodes=12), 2),
        (HistGradientBoostingClassifier(max_iter=2, max_leaf_nodes=8), 3),
        (HistGradientBoostingClassifier(max_iter=3, max_leaf_nodes=10, categorical_features=[4, 5]), 2),
        (HistGradientBoostingRegressor(max_iter=3, max_leaf_nodes=12, min_samples_leaf=3), None),
    ],
    ids=str,
)
def test_both_engines_give_the_shapley_values_of_histogram_trees(estimator, outcomes):
    pipeline = fitted(estimator, classes(outcomes) if outcomes else SCORE)
    compiled = compile_pipeline(pipeline, FEATURES, contributions=True)
    explainer, _ = described(pipeline)
    rows = OTHERS[:6]
    output = 2 if outcomes == 3 else 0
    outputs = np.full(len(rows), output)
    found = explainer.contributions(rows, outputs)
    np.testing.assert_allclose(compiled.contributions(bins_of(compiled, rows), outputs), found, atol=1e-12)
    np.testing.assert_allclose(compiled.expected, explainer.expected, atol=1e-12)
    sources, values = sources_of(pipeline, FEATURES), explainer.prepared(rows)
    for row, expected in enumerate(found):
        worth = worth_of_histogram(pipeline[-1], values[row], sources, output)
        np.testing.assert_allclose(by_definition(worth, len(FEATURES)), expected, atol=1e-12)
        assert worth(set()) == pytest.approx(explainer.expected[output] - pipeline[-1]._baseline_prediction[0, output])


def test_the_values_of_a_column_move_together():
    """Of one-hot columns and missing indicators, the column that they come from is the player."""
    pipeline = fitted(GradientBoostingClassifier(n_estimators=6, max_depth=4), classes(2))
    compiled = compile_pipeline(pipeline, FEATURES, contributions=True)
    explainer, _ = described(pipeline)
    rows, outputs = OTHERS[:4], np.zeros(4, dtype=int)
    found = explainer.contributions(rows, outputs)
    np.testing.assert_allclose(compiled.contributions(bins_of(compiled, rows), outputs), found, atol=1e-12)
    trees, values = [stage[0].tree_ for stage in pipeline[-1].estimators_], explainer.prepared(rows)
    for row, expected in enumerate(found):
        worth = worth_of_trees(
            trees, lambda tree, node: 0.1 * tree.value[node, 0, 0], values[row], sources_of(pipeline, FEATURES)
        )
        np.testing.assert_allclose(by_definition(worth, len(FEATURES)), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("estimator", "outcomes"),
    [(RandomForestClassifier(n_estimators=3, max_depth=6), 2), (DecisionTreeClassifier(max_depth=7), 3)],
    ids=str,
)
def test_forests_have_the_shapley_values_of_their_probabilities(estimator, outcomes):
    pipeline = fitted(estimator, classes(outcomes))
    explainer, _ = described(pipeline)
    trees = [each.tree_ for each in getattr(pipeline[-1], "estimators_", [pipeline[-1]])]
    found = explainer.contributions(OTHERS[:4], np.full(4, outcomes - 2))
    for row, expected in enumerate(found):
        worth = worth_of_trees(
            trees,
            lambda tree, node: tree.value[node, 0, 1] / len(trees),
            explainer.prepared(OTHERS)[row],
            sources_of(pipeline, FEATURES),
        )
        np.testing.assert_allclose(by_definition(worth, len(FEATURES)), expected, atol=1e-12)


@settings(max_examples=15, phases=[Phase.generate])
@given(st.integers(0, 2**32))
def test_any_tree_has_the_shapley_values_of_the_definition(seed):
    random = np.random.default_rng(seed)
    d, rows = int(random.integers(1, 7)), int(random.integers(1, 4))
    data = np.where(random.random((80, d)) < 0.2, np.nan, random.normal(size=(80, d)).round(1))
    tree = DecisionTreeRegressor(max_depth=int(random.integers(1, 9)), random_state=0)
    tree.fit(data, random.normal(size=80), sample_weight=random.random(80) + 0.01)
    explainer = explainer_for(tree, range(d), d, [])
    values = np.where(random.random((rows, d)) < 0.3, np.nan, random.normal(size=(rows, d)))
    for row, found in zip(values, explainer.contributions(values, np.zeros(rows, dtype=int)), strict=True):
        worth = worth_of_trees([tree.tree_], lambda tree, node: tree.value[node, 0, 0], np.float32(row), range(d))
        np.testing.assert_allclose(found, by_definition(worth, d), atol=1e-12)


ESTIMATORS = [
    (HistGradientBoostingClassifier(max_iter=30), 2),
    (
        HistGradientBoostingClassifier(max_iter=5, max_leaf_nodes=100, min_samples_leaf=3, categorical_features=[1, 4]),
        3,
    ),
    (HistGradientBoostingRegressor(max_iter=5, loss="poisson"), None),
    (GradientBoostingClassifier(n_estimators=5, max_depth=8), 3),
    (GradientBoostingRegressor(n_estimators=10, init="zero", subsample=0.5), None),
    (RandomForestRegressor(n_estimators=4), None),
    (ExtraTreesRegressor(n_estimators=4, bootstrap=True), None),
    (LogisticRegression(), 2),
    (LogisticRegression(), 3),
    (SGDClassifier(loss="log_loss"), 3),
    (LinearRegression(), None),
    (PoissonRegressor(), None),
    (LGBMClassifier(n_estimators=5, verbose=-1), 2),
    (LGBMClassifier(n_estimators=5, verbose=-1), 3),
    (LGBMRegressor(n_estimators=5, verbose=-1), None),
    (XGBClassifier(n_estimators=5), 2),
    (XGBClassifier(n_estimators=5), 3),
    (XGBRegressor(n_estimators=5), None),
]


@pytest.mark.parametrize(("estimator", "outcomes"), ESTIMATORS, ids=str)
def test_contributions_add_up_to_the_raw_score(estimator, outcomes):
    pipeline = fitted(estimator, classes(outcomes) if outcomes else np.exp(SCORE))
    explainer, kept = described(pipeline)
    scores = raw_scores(pipeline, OTHERS)
    assert kept.expected == explainer.expected.tolist()
    assert scores.shape[1] == len(kept.expected) == (outcomes if outcomes == 3 else 1)
    for output in range(scores.shape[1]):
        sums = explainer.contributions(OTHERS, np.full(len(OTHERS), output)).sum(axis=1)
        tolerance = 1e-5 if type(estimator).__name__.startswith("XGB") else 1e-9  # it adds in single precision
        np.testing.assert_allclose(sums + kept.expected[output], scores[:, output], rtol=tolerance, atol=tolerance)


def test_of_several_classes_each_record_has_its_own_explained():
    pipeline = fitted(HistGradientBoostingClassifier(max_iter=4), classes(3))
    compiled = compile_pipeline(pipeline, FEATURES, contributions=True)
    bins, predicted = bins_of(compiled, OTHERS), pipeline.predict(OTHERS)
    assert set(predicted) == {0, 1, 2}
    sums = compiled.contributions(bins, predicted).sum(axis=1) + compiled.expected[predicted]
    np.testing.assert_allclose(sums, compiled.raw(bins)[np.arange(len(OTHERS)), predicted], atol=1e-12)


def test_a_linear_model_is_explained_by_what_is_above_the_mean():
    pipeline = fitted(LinearRegression(), SCORE)
    explainer, kept = described(pipeline)
    prepared = pipeline[0].transform(FRAME)
    of_kind = [index for index, source in enumerate(sources_of(pipeline, FEATURES)) if source == 1]
    assert len(of_kind) == 4  # three kinds, and none
    expected = (prepared - prepared.mean(axis=0))[:, of_kind] @ pipeline[-1].coef_[of_kind]
    found = explainer.contributions(FRAME, np.zeros(len(FRAME), dtype=int))
    np.testing.assert_allclose(found[:, 1], expected, atol=1e-12)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-12)
    assert kept.expected == pytest.approx([pipeline.predict(FRAME).mean()])


def test_a_record_alone_has_what_it_has_in_a_block_to_the_last_bit(monkeypatch):
    pipeline = fitted(HistGradientBoostingClassifier(max_iter=20, max_leaf_nodes=20), classes(2))
    compiled = compile_pipeline(pipeline, FEATURES, contributions=True)
    rows = make_frame(300, seed=4)
    bins, outputs = bins_of(compiled, rows), np.zeros(300, dtype=int)
    in_a_block = compiled.contributions(bins, outputs)
    for row in (0, 7, 299):
        alone = compiled.contributions([column_bins[row : row + 1] for column_bins in bins], outputs[:1])
        np.testing.assert_array_equal(alone[0], in_a_block[row])
    monkeypatch.setattr(contributions_module, "_ROWS", 70)
    monkeypatch.setattr(contributions_module, "_CELLS", 1 << 11)
    np.testing.assert_array_equal(compiled.contributions(bins, outputs), in_a_block)


def test_paths_of_many_columns():
    columns, rows = 20, 400  # more than tables are made for
    random = np.random.default_rng(0)
    data = random.normal(size=(rows, columns))
    tree = DecisionTreeRegressor(random_state=0).fit(data, data.prod(axis=1))
    found = explainer_for(tree, range(columns), columns, [])
    assert max(paths.columns.shape[1] for paths, _leaves in found._paths[0]) > 8
    sums = found.contributions(data, np.zeros(rows, dtype=int)).sum(axis=1) + found.expected[0]
    np.testing.assert_allclose(sums, tree.predict(data), atol=1e-12)


@pytest.fixture(scope="module")
def pipeline():
    return fitted(HistGradientBoostingClassifier(max_iter=10), classes(2))


LINES = [
    b"1\t0.001\tx\t5\t\\N\tp7\t3\t\\N",
    b"2\t-0.002\tZo\xc3\xab\t-20\t2\tnew\t\\N\t\\N",
    b"3\tbad\ty\t5\t\\N\tp7\t3\t\\N",
]


def test_lines_get_the_same_json_from_both_engines(pipeline):
    kept = describe(pipeline, sources_of(pipeline, FEATURES), len(FEATURES), FRAME)
    manifest = ModelManifest(features=FEATURES, classes=[0, 1], contributions=kept, outputs=["contributions"], top=3)
    compiled = compile_pipeline(pipeline, FEATURES, contributions=True)
    cells = [
        Model(predictor, manifest).score(join_lines(LINES)).cells[-1]
        for predictor in (CompiledPredictor(compiled, FEATURES), EstimatorPredictor(pipeline, manifest))
    ]
    assert manifest.columns[-1] == "contributions"
    assert cells[0] == cells[1]
    assert cells[0].pop() == NULL  # of the record with a bad value
    for cell in cells[0]:
        values = list(json.loads(unescape(cell)).values())
        assert len(values) == 3
        assert values == sorted(values, key=abs, reverse=True)


def test_the_largest_contributions_come_first_and_none_of_0():
    values = np.array([[0.5, -1.25, 0.0, 123456.0], [0.0, 0.0, 0.0, 0.0], [1e-12, 2.0, -2.0, 0.1]])
    keys = [b'"a"', b'"b"', b'"c"', b'"d"']
    assert as_json(values, keys, 3) == [
        b'{"d": 1.235e+05, "b": -1.25, "a": 0.5}',
        b"{}",
        b'{"b": 2, "c": -2, "d": 0.1}',
    ]
    assert as_json(values[2:], keys, None) == [b'{"b": 2, "c": -2, "d": 0.1, "a": 1e-12}']


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (MLPClassifier(max_iter=2), "not MLPClassifier;"),
        (AdaBoostClassifier(n_estimators=2), "not AdaBoostClassifier;"),
        (
            GradientBoostingClassifier(n_estimators=2, init=LogisticRegression()),
            "not GradientBoostingClassifier with an init of its own;",
        ),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_other_models_have_no_contributions(estimator, reason):
    with pytest.raises(InputError, match=f"model.outputs: contributions need a tree or a linear model, {reason}"):
        described(fitted(estimator, classes(2)))


def test_what_is_not_explained_is_refused_before_it_is_fitted():
    for estimator in (LGBMRegressor(), PoissonRegressor(), FixedThresholdClassifier(RandomForestClassifier())):
        check_kind(estimator)
    for other in (MLPClassifier(), FixedThresholdClassifier(AdaBoostClassifier())):
        with pytest.raises(InputError, match=r"need a tree or a linear model, not (MLP|AdaBoost)Classifier;"):
            check_kind(other)


def test_contributions_that_do_not_add_up_are_refused(pipeline, monkeypatch):
    scores = raw_scores(pipeline, FRAME[:100])
    monkeypatch.setattr(
        "predictions.scoring.estimator_contributions.raw_scores", lambda *_model_and_rows: scores + 1e-6
    )
    with pytest.raises(InputError, match="do not add up to its scores"):
        described(pipeline)


def test_memory_is_bounded_whatever_the_columns_and_leaves():
    columns, rows = 64, 4_500
    data = np.random.default_rng(0).normal(size=(rows, columns))  # each value comes once
    tree = DecisionTreeRegressor(max_depth=8, random_state=0).fit(data, data[:, :8].sum(axis=1))
    explainer = explainer_for(tree, range(columns), columns, [])
    tracemalloc.start()
    sums = explainer.contributions(data, np.zeros(rows, dtype=int)).sum(axis=1)
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_allclose(sums + explainer.expected[0], tree.predict(data), atol=1e-9)
    assert peak < 64 << 20


def test_a_compiled_model_keeps_what_contributions_need(pipeline, tmp_path):
    compiled = compile_pipeline(pipeline, FEATURES, contributions=True)
    without = compile_pipeline(pipeline, FEATURES)
    path, model_sha256 = tmp_path / "model.npz", "5" * 64
    for model in (without, compiled):
        model.save(path, model_sha256, 7)
        with np.load(path) as archive:
            assert ("shares" in archive) == (model is compiled)
    loaded = load(path, sha256(path), model_sha256)
    bins, outputs = bins_of(compiled, OTHERS), np.zeros(len(OTHERS), dtype=int)
    np.testing.assert_array_equal(loaded.contributions(bins, outputs), compiled.contributions(bins, outputs))
    with pytest.raises(IndexError, match="column 0 has"):
        loaded.contributions([bins[0] * 0 - 1, *bins[1:]], outputs)
    for wrong in (
        compiled.shares[1:],
        compiled.shares.astype(np.float32),
        with_value(compiled.shares, 0, 0.0),
        with_value(compiled.shares, 0, np.nan),
    ):
        rewrite(path, shares=wrong)
        with pytest.raises(InputError, match="not a compiled model: shares are"):
            load(path, sha256(path), model_sha256)


def test_a_tree_that_does_not_say_how_many_records_it_had_is_refused():
    data = pd.DataFrame({"a": np.arange(20.0)})
    tree = DecisionTreeRegressor(max_depth=2).fit(data, np.arange(20.0))
    state = tree.tree_.__getstate__()
    state["nodes"]["weighted_n_node_samples"] = 0
    tree.tree_.__setstate__(state)
    with pytest.raises(InputError, match="do not say how many records"):
        explainer_for(tree, [0], 1, [])
