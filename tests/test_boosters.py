"""LightGBM and XGBoost: trained here and fitted elsewhere, scored by all runners; damaged models are refused."""

import importlib
import json
import os
import random
import re
import signal
import sqlite3
import struct
import subprocess
import sys
import zipfile
from contextlib import closing
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import lightgbm
import numpy as np
import pandas as pd
import pytest
import skops.io
from conftest import CHECKOUT, make_orders, manifest_of
from inprocess import script, without
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

import mapper
import reducer
from predictions.errors import InputError
from predictions.formats.manifest import ModelManifest
from predictions.formats.record_line import Column
from predictions.jobs.bundle import task_libraries
from predictions.scoring import boosters
from predictions.scoring import estimator as estimators
from predictions.scoring.checks import lightgbm_text, xgboost_buffer
from predictions.scoring.checks.errors import ContentsError
from predictions.scoring.files import load_model, save_model
from predictions.scoring.predict import killing_signal
from predictions.settings import load_settings
from predictions.stages.export import export
from predictions.stages.schema import infer_schema
from predictions.stages.score import score, take_models
from predictions.stages.train import train
from predictions.storage import Storage

# For skops alone, without any code of this package.
ALL_TYPES = [*estimators.TRUSTED, "lightgbm.basic.Booster", "xgboost.core.Booster"]
CLASSIFIERS = "lightgbm.LGBMClassifier", "xgboost.XGBClassifier"
REGRESSORS = "lightgbm.LGBMRegressor", "xgboost.XGBRegressor"
LIBRARIES = "lightgbm", "xgboost"
NEW = "order-007"  # with a country that no labelled order has


def quiet(*_arguments):
    pass


class Project:
    """The orders, an export for each choice of columns, and a model trained on it."""

    def __init__(self, folder):
        self.folder = make_orders(folder)
        with closing(sqlite3.connect(folder / "orders.db")) as connection, connection:
            connection.execute("UPDATE orders SET country = 'new', paid = NULL, note = NULL WHERE id = ?", [NEW])
            connection.execute(
                "UPDATE orders SET note = CASE WHEN paid IS NULL THEN NULL WHEN amount > 300 THEN 'a lot'"
                " WHEN amount > 99 THEN 'some' ELSE 'few' END"
            )
        self._exports = {}

    def settings(self, **changes):
        settings = load_settings(self.folder / "predictions.toml")
        changes = {"params": {"n_estimators": 12}} | changes
        return settings.model_copy(update={"model": settings.model.model_copy(update=changes)})

    def train(self, **changes):
        """Train in a release that has such an export already, if there is one, and return its folder."""
        settings = self.settings(**changes)
        columns = settings.model.label, *settings.model.features
        if columns not in self._exports:
            storage = Storage(settings.hadoop.storage, settings.name)
            self._exports[columns] = export(settings, storage, quiet, quiet)
        folder = self._exports[columns]
        folder.remove("model")
        with without():
            train(settings, folder, quiet)
        return folder

    def table(self):
        with closing(sqlite3.connect(self.folder / "orders.db")) as connection:
            return pd.read_sql("SELECT * FROM orders", connection, index_col="id")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return Project(tmp_path_factory.mktemp("boosters"))


def pipe(folder, model=None):
    """Pipe the export through mapper, sort and reducer, and return each record's prediction and probability."""
    model = model or f"{folder.path}/model/model.json"
    records = b"".join(block for path in folder.files("export") for block in folder.blocks(path))
    mapped = script(mapper.main, model, folder.release, stdin=records)
    assert mapped.returncode == 0, mapped.stderr
    in_order = sorted(mapped.stdout.splitlines(True), key=lambda line: line.partition(b"\t")[0])
    reduced = script(reducer.main, stdin=b"".join(in_order))
    lines = [line.split("\t") for line in reduced.stdout.decode().splitlines()]
    assert {line[-1] for line in lines} == {"\\N"}
    return {line[0].partition(":")[2]: (line[1], line[2]) for line in lines}


def expected(estimator, frame, classes):
    """Return the same from the library's own predictions."""
    if classes is None:
        values = estimator.predict(frame).astype(float)
        return {key: (f"{value:.7g}", "\\N") for key, value in zip(frame.index, values, strict=True)}
    rows = estimator.predict_proba(frame).astype(float)
    best = rows.argmax(axis=1)
    return {
        key: (str(classes[index]), f"{row[index]:.7g}") for key, index, row in zip(frame.index, best, rows, strict=True)
    }


@pytest.mark.parametrize(
    ("estimator", "label"),
    [*((estimator, label) for estimator in CLASSIFIERS for label in ("paid", "note"))]
    + [(estimator, "amount") for estimator in REGRESSORS],
)
def test_a_model_trained_here_predicts_what_its_library_does(project, estimator, label):
    """With missing values, categories, and one that was not there at training; the model is read by skops alone."""
    features = ["country", "items", *(["amount"] if label != "amount" else ["paid"])]
    folder = project.train(estimator=estimator, label=label, features=features)
    model = folder.model
    assert (model.engine, model.compiled) == (estimator.partition(".")[0], None)
    assert model.classes == {"paid": [0, 1], "note": ["a lot", "few", "some"], "amount": None}[label]
    assert model.versions[model.engine] == importlib.import_module(model.engine).__version__
    metric = "rmse" if label == "amount" else "log_loss"
    assert model.training.metrics[metric] < model.training.baseline[metric]
    own = skops.io.load(f"{folder.path}/model/model.skops", trusted=ALL_TYPES)
    frame = project.table()
    assert frame.loc[NEW, "country"] == "new"
    assert frame[features].isna().any().any()
    assert pipe(folder) == expected(own, frame[features], model.classes)


def fitted(library, kind, **params):
    """Return an estimator of either library, unfitted."""
    names = {"lightgbm": f"LGBM{kind}", "xgboost": f"XGB{kind}"}
    return getattr(importlib.import_module(library), names[library])(n_estimators=12, n_jobs=1, **params)


def save(estimator, folder, features, classes=None):
    columns = [Column(name, "text" if name == "country" else "real") for name in features]
    task = "classification" if classes else "regression"
    manifest = ModelManifest(
        id=Column("id", "text"), features=columns, label=Column("paid", "integer"), classes=classes, task=task
    )
    save_model(estimator, manifest, folder)
    return folder / "model.json"


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_score_of_a_fitted_ranker(project, tmp_path, library):
    """Alone, without a pipeline in front."""
    features = ["amount", "items"]
    folder, frame = project.train(features=features, params={"max_iter": 5}), project.table()
    ranker = fitted(library, "Ranker").fit(frame[features], frame["paid"].fillna(0).astype(int), group=[200, 200])
    found = pipe(folder, save(ranker, tmp_path, features))
    assert found == expected(ranker, frame[features], None)
    assert len(set(found.values())) > 10


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_fitted_pipeline_with_native_categories(project, tmp_path, library):
    features = ["country", "amount"]
    folder, frame = project.train(features=features, params={"max_iter": 5}), project.table()
    labels = ((frame["country"] == "CH") == (frame["amount"] > 250)).astype(int)
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan, encoded_missing_value=np.nan)
    columns = make_column_transformer((encoder, ["country"]), remainder="passthrough")
    native, params = {}, {"max_depth": 3}
    if library == "lightgbm":
        native = {"lgbmclassifier__categorical_feature": [0]}
        params |= {"min_data_per_group": 1, "cat_smooth": 1, "verbose": -1}
    else:
        params |= {"enable_categorical": True, "feature_types": ["c", "q"], "max_cat_to_onehot": 1}
    pipeline = make_pipeline(columns, fitted(library, "Classifier", **params))
    pipeline.fit(frame[features], labels, **native)
    path = save(pipeline, tmp_path, features, [0, 1])
    assert pipe(folder, path) == expected(pipeline, frame[features], [0, 1])
    splits = rb"num_cat=[1-9]" if library == "lightgbm" else rb"categories_nodes\[\$l#L\0{7}[^\0]"
    assert re.search(splits, content(tmp_path))


@pytest.mark.parametrize("library", LIBRARIES)
def test_categories_of_pandas(project, tmp_path, library):
    frame = project.table()[["country", "amount", "items"]].astype({"country": "category"})
    params = {"min_data_per_group": 1} if library == "lightgbm" else {"enable_categorical": True}
    estimator = fitted(library, "Regressor", **params).fit(frame, frame["amount"].fillna(0))
    path = tmp_path / "model.skops"
    estimators.save(estimator, path)
    frame.loc[NEW, "country"] = None
    assert (estimators.load(path).predict(frame) == estimator.predict(frame)).all()


CATEGORIES = {"text": ["a", "b"], "number": [3, 2**40], "one": ["x"]}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("wrapper", [make_pipeline, FixedThresholdClassifier, partial(CalibratedClassifierCV, cv=2)])
def test_the_categories_of_pandas_are_found_by_column(library, wrapper):
    columns = {name: pd.Categorical([values[0], values[-1], None] * 50) for name, values in CATEGORIES.items()}
    frame = pd.DataFrame({"first": np.arange(150.0), **columns, "last": np.arange(150) % 7})
    params = {"enable_categorical": True} if library == "xgboost" else {}
    estimator = wrapper(fitted(library, "Classifier", **params)).fit(frame, np.arange(150) // 3 % 2)
    features = [Column(name, "text" if name in ("text", "one") else "integer") for name in frame]
    found = {feature.name: feature.categories for feature in infer_schema(estimator, features, set(), None, {})}
    assert found == dict.fromkeys(frame) | CATEGORIES
    assert boosters.pandas_categories(fitted(library, "Classifier").fit(frame[["first"]], np.arange(150) % 2)) == {}


def test_categories_that_are_not_clear_are_refused():
    """LightGBM does not say of which column they are, XGBoost cuts them."""
    frame = pd.DataFrame({"one": pd.Categorical(["x"] * 99), "constant": np.ones(99), "last": np.arange(99)})
    estimator = fitted("lightgbm", "Classifier").fit(frame, np.arange(99) % 2)
    with pytest.raises(ContentsError, match="does not say which columns are categories"):
        boosters.pandas_categories(estimator)
    frame = pd.DataFrame({"text": pd.Categorical(["x", "yé"] * 9)})
    estimator = fitted("xgboost", "Classifier", enable_categorical=True).fit(frame, np.arange(18) % 2)
    with pytest.raises(ContentsError, match="not ASCII; give them to an OrdinalEncoder"):
        boosters.pandas_categories(estimator)


@pytest.mark.parametrize("estimator", CLASSIFIERS)
def test_the_same_training_gives_the_same_bytes_on_any_number_of_threads(project, estimator):
    digests = set()
    for threads in (1, 2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("predictions.stages.fit._threads", lambda _features, threads=threads: threads)
            digests.add(project.train(estimator=estimator, params={"n_estimators": 3}).model.sha256)
    assert len(digests) == 1


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_record_alone_is_scored_as_in_its_block(project, library):
    folder = project.train(estimator=dict(zip(LIBRARIES, CLASSIFIERS, strict=True))[library])
    model = load_model(Path(folder.path) / "model" / "model.json")
    lines = b"".join(block for path in folder.files("export") for block in folder.blocks(path)).splitlines(True)
    scores = model.score(b"".join(lines))
    alone = [model.score(line) for line in lines[:50]]
    assert [each.probabilities[0] for each in alone] == scores.probabilities[:50]


ONE_THREAD = """
import os, sys
from pathlib import Path
from predictions.scoring.files import load_model
from predictions.scoring.predict import killing_signal
from predictions.task import environment
threads = lambda: len(os.listdir("/proc/self/task"))
model, lines = load_model(Path(sys.argv[1])), Path(sys.argv[2]).read_bytes()
with model.predictor.one_thread():
    before = threads()
    model.score(lines)
    assert threads() == before, "it starts threads"
def in_one_thread(block):
    with model.predictor.one_thread():
        model.score(block)
assert killing_signal(in_one_thread, lines) is None
print("done")
"""


@pytest.mark.parametrize("estimator", CLASSIFIERS)
def test_one_thread_scores(project, tmp_path, estimator):
    """Also in a fork of a process whose libraries have started threads (at the loading)."""
    folder = project.train(estimator=estimator)
    [part] = folder.files("export")
    process = subprocess.run(
        [sys.executable, "-c", ONE_THREAD, f"{folder.path}/model/model.json", part],
        env={**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.stdout == "done\n", process.stderr


@pytest.mark.parametrize(("estimator", "runner"), [(CLASSIFIERS[0], "local"), (CLASSIFIERS[1], "pipe")])
def test_only_what_has_changed_is_scored(tmp_path, estimator, runner):
    project = Project(tmp_path)
    folder, settings = project.train(estimator=estimator), project.settings(estimator=estimator)
    first = score(settings, folder, runner, quiet)  # by processes
    assert task_libraries(folder.storage)[-1] == folder.model.engine
    with closing(sqlite3.connect(tmp_path / "orders.db")) as connection, connection:
        connection.execute("UPDATE orders SET items = items + 20 WHERE rowid % 50 = 3")
    second = export(settings, folder.storage, quiet, quiet)
    take_models(second, folder)
    with without():
        full = score(settings, second, runner, quiet), lines_of(second)
        second.remove("scored")
        second.write_manifest(replace(manifest_of(second), scored=None))
        changed = score(settings, second, runner, quiet, folder, True), lines_of(second)
    assert (first.rows, full[0].rows, changed[0].carried) == (400, 400, 392)
    assert changed[1] == full[1]


def lines_of(folder):
    """Return the prediction lines without the time of scoring."""
    text = b"".join(block for path in folder.files("scored") for block in folder.blocks(path)).decode()
    return [line.split("\t")[:4] for line in text.splitlines()]


def content(folder):
    """Return the state of the booster in a saved model."""
    with zipfile.ZipFile(folder / "model.skops") as archive:
        names = [name for name in archive.namelist() if name.endswith(".bin")]
        return archive.read(names[0] if names else "schema.json")


def replaced(path, change):
    """Change the state of the booster in a saved model: LightGBM's text, or XGBoost's buffer."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    names = [name for name in files if name.endswith(".bin")]
    if names:
        buffer = bytearray(files[names[0]])
        change(buffer)
        files[names[0]] = bytes(buffer)
    else:
        schema = json.loads(files["schema.json"])
        handle = schema["content"]["content"]["_Booster"]["content"]["content"]["_handle"]
        text = json.loads(handle["content"])
        changed = change(text)
        assert changed != text
        handle["content"] = json.dumps(changed)
        files["schema.json"] = json.dumps(schema).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def line(name, *changes):
    """Return a function that changes values, by index, in the first line of this name of LightGBM's text."""

    def change(text):
        def changed(match):
            values = match[1].split(" ")
            for index, value in changes:
                values[index] = str(value)
            return f"\n{name}={' '.join(values)}\n"

        # The loader jumps to offsets if there are some; without them it reads line by line, as it does our own text.
        return re.sub(rf"\n{name}=(.*)\n", changed, re.sub(r"\ntree_sizes=.*", "", text), count=1)

    return change


def both(*functions):
    def change(state):
        for function in functions:
            state = function(state) or state
        return state

    return change


def array(name, index, value):
    """Return a function that changes a value of the first typed array of this name in XGBoost's buffer."""

    def change(buffer):
        start = buffer.rindex(b"Model") if name == "num_class" else 0
        at = buffer.index(name.encode() + b"[", start) + len(name)
        [kind] = re.findall(rb"^\[\$(.)#L", bytes(buffer[at : at + 5]), re.DOTALL)
        code = {b"l": ">i", b"U": ">B", b"L": ">q"}[kind]
        struct.pack_into(code, buffer, at + 13 + index * struct.calcsize(code), value)

    return change


def value(name, found, put):
    """Return a function that replaces a value after its name, everywhere in XGBoost's buffer."""

    def change(buffer):
        assert name + found in buffer
        buffer[:] = buffer.replace(name + found, name + put)

    return change


CIRCLE = both(line("left_child", (0, 1), (1, 0)), line("right_child", (0, 1), (1, 0)))
CIRCLE_OF_XGBOOST = both(
    *(array(f"{side}_children", index, 1 - index) for side in ("left", "right") for index in (0, 1))
)
DAMAGED = {
    "lightgbm": [
        (line("left_child", (0, 1 << 28)), "tree 0: a child is not one of the tree's nodes"),
        (line("left_child", (0, -1 << 28)), "tree 0: a child is not one of the tree's nodes"),
        (line("left_child", (0, 15)), "tree 0: a child is not one of the tree's nodes"),
        (CIRCLE, "tree 0: a child is not"),
        (line("left_child", (0, 2)), "tree 0: a node has two parents"),
        (line("left_child", (0, "1 2")), "left_child has 12 values, not 11"),
        (line("left_child", (0, "x")), "left_child has something that is not a number"),
        (line("split_feature", (0, 2)), "tree 0: a feature is out of range"),
        (line("decision_type", (0, 16)), "tree 0: a decision type is out of range"),
        (line("decision_type", (0, 1)), "tree 0: a set of categories is out of range"),
        (line("num_cat", (0, 99_999_999)), "tree 0: num_leaves or num_cat is out of range"),
        (line("leaf_count", (0, "inf")), "leaf_count has something that is not a number"),
        (line("num_leaves", (0, 1_000_000)), "tree 0: num_leaves or num_cat is out of range"),
        (line("num_class", (0, 3)), "the numbers of classes differ"),
        (line("objective", (0, "multiclass"), (1, "num_class:90000000")), "the numbers of classes differ"),
        (line("max_feature_idx", (0, 3)), "feature_names is not one for each feature"),
        (line("is_linear", (0, 1)), "linear trees are not supported"),
        (lambda text: text.replace("\nTree=1\n", "\nTree=2\n"), "tree 1 is missing"),
        (lambda text: text.replace("shrinkage=", "shrink="), "unknown line shrink"),
        (lambda text: text[: text.index("end of trees")], "it has no end of trees"),
    ],
    "xgboost": [
        (array("left_children", 0, 1 << 28), "tree 0: a child is not one of the tree's nodes"),
        (CIRCLE_OF_XGBOOST, "tree 0: a child is not"),
        (array("left_children", 0, 2), "tree 0: a node has two parents"),
        (array("left_children", 0, -1), "tree 0: a node has one child only"),
        (array("parents", 1, 2), "tree 0: a parent is another"),
        (array("split_indices", 0, 2), "tree 0: a feature is out of range"),
        (array("split_type", 0, 1), "tree 0: the splits by category are others"),
        (value(b"tree_info[#L\0\0\0\0\0\0\0\x0c", b"i\0", b"i\1"), "the class of a tree is out of range"),
        (value(b"\x02id", b"i\0", b"i\1"), "tree 0: its id is another"),
        (
            value(b"num_class", b"SL\0\0\0\0\0\0\0\x010", b"SL\0\0\0\0\0\0\0\x099" + b"9" * 8),
            "num_class is out of range",
        ),
        (value(b"iteration_indptr[#L\0\0\0\0\0\0\0\x0di\0", b"i\1", b"i\x7f"), "iteration_indptr is out of range"),
        (value(b"left_childre", b"n[$l", b"n[$d"), "an array holds no integers"),
        (lambda buffer: buffer.__delitem__(slice(1000, None)), "it ends too early"),
        (lambda buffer: buffer.extend(b"}"), "it is followed by something else"),
    ],
}


@pytest.fixture(scope="module")
def saved(project, tmp_path_factory):
    """Return the paths of models with two features and twelve trees, by library."""
    frame, paths = project.table(), {}
    for library in LIBRARIES:
        params = {"num_leaves": 12, "min_child_samples": 2, "verbose": -1} if library == "lightgbm" else {}
        estimator = fitted(library, "Classifier", **params)
        estimator.fit(frame[["amount", "items"]].to_numpy(), frame["paid"].fillna(0).astype(int))
        paths[library] = tmp_path_factory.mktemp(library) / "model.skops"
        estimators.save(estimator, paths[library])
    return paths


@pytest.mark.parametrize("library", LIBRARIES)
def test_damaged_models_are_refused_before_their_library_sees_them(saved, tmp_path, monkeypatch, library):
    estimators.load(saved[library])
    monkeypatch.setattr(importlib.import_module(library), "Booster", None)
    for number, (change, message) in enumerate(DAMAGED[library]):
        path = tmp_path / f"{number}.skops"
        path.write_bytes(saved[library].read_bytes())
        replaced(path, change)
        with pytest.raises(InputError) as caught:
            estimators.load(path)
        assert str(caught.value).startswith(f"{path}: its model of {library} is damaged: "), caught.value
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


UNCHECKED = """
import signal, sys, time
import numpy as np
from pathlib import Path
from predictions.scoring import estimator
from predictions.scoring.checks import lightgbm_text, xgboost_buffer
lightgbm_text.checked = lambda text: text
xgboost_buffer.checked = lambda data: data[data.index(b"Model") + 5 : -1]
import lightgbm, xgboost
signal.alarm(3)
estimator.load(Path(sys.argv[1])).predict_proba(np.ones((10, 2)))
"""


@pytest.mark.parametrize(("library", "index"), [("lightgbm", 0), ("lightgbm", 3), ("xgboost", 5)])
def test_without_the_checks_their_library_crashes_or_hangs(saved, tmp_path, library, index):
    path = tmp_path / "model.skops"
    path.write_bytes(saved[library].read_bytes())
    change = {5: array("split_indices", 0, 1 << 28)}.get(index, DAMAGED[library][index][0])
    replaced(path, change)
    command = [sys.executable, "-c", UNCHECKED, str(path)]
    process = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, capture_output=True, text=True)
    assert -process.returncode in (signal.SIGSEGV, signal.SIGALRM, signal.SIGABRT, signal.SIGBUS), process.stderr


def mutate_text(text, random):
    """Replace some numbers of a model's text, or move a line."""
    tokens = re.split(r"([ =\n])", text[: text.index("feature_importances")])
    numbers = [index for index, token in enumerate(tokens) if re.fullmatch(r"-?[\d.e+-]+", token)]
    for _change in range(random.choice([1, 1, 2, 5])):
        choices = ["0", "1", "-1", "7", "-3", str(random.randint(-12, 12)), "99999999", "2147483647", "inf", "x", ""]
        tokens[random.choice(numbers)] = random.choice([*choices, tokens[random.choice(numbers)]])
    lines = "".join(tokens).split("\n")
    if random.random() < 0.2:
        lines.insert(random.randrange(len(lines)), lines.pop(random.randrange(len(lines))))
    return "\n".join(lines)


def mutate_buffer(buffer, random):
    """Replace some integers of the arrays of a model's buffer, or some of its bytes."""
    mutated, start = bytearray(buffer), buffer.index(b"Model")
    arrays = [found for found in re.finditer(rb"\[\$([lUL])#L(.{8})", buffer, re.DOTALL) if found.start() > start]
    for _change in range(random.choice([1, 1, 2])):
        array = random.choice(arrays)
        code, length = {b"l": ">i", b"U": ">B", b"L": ">q"}[array[1]], struct.unpack(">q", array[2])[0]
        if length and random.random() < 0.7:
            value = random.randrange(9) if code == ">B" else random.choice([*range(9), -1, 100, 1 << 28, -(1 << 28)])
            struct.pack_into(code, mutated, array.end() + random.randrange(length) * struct.calcsize(code), value)
        else:
            mutated[random.randrange(start, len(mutated))] = random.randrange(256)
    return bytes(mutated)


@pytest.mark.parametrize("library", LIBRARIES)
def test_mutated_models_are_refused_or_harmless(library, full):
    """Each is loaded and predicted with in a forked process: none crashes or hangs."""
    rows = np.random.default_rng(0).normal(size=(300, 3)).round(1)
    rows[:, 2] = np.abs(rows[:, 2] * 4).round()
    labels = np.digitize(rows[:, 0] + rows[:, 2] % 3, [0.5, 1.5])
    if library == "lightgbm":
        params = {"num_leaves": 6, "min_data_per_group": 1, "cat_smooth": 1, "verbose": -1}
        estimator = fitted(library, "Classifier", **params).fit(rows, labels, categorical_feature=[2])
    else:
        frame = pd.DataFrame(rows).astype({2: "category"}).rename(columns=str)
        frame["2"] = frame["2"].cat.rename_categories(lambda category: f"k{category:.0f}")
        estimator = fitted(library, "Classifier", enable_categorical=True, max_cat_to_onehot=1, max_depth=3)
        rows = frame
        estimator.fit(rows, labels)
    booster = estimator._Booster
    state = booster.__getstate__()["_handle" if library == "lightgbm" else "handle"]

    def predict(data):
        signal.alarm(20)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        if library == "lightgbm":
            lightgbm.Booster(model_str=lightgbm_text.checked(data)).predict(rows, num_threads=1)
        else:
            type(booster)(model_file=bytearray(xgboost_buffer.checked(data))).inplace_predict(rows)

    assert killing_signal(predict, state if library == "lightgbm" else bytes(state)) is None
    for seed in range(1000 if full else 60):
        mutate, source = (mutate_text, state) if library == "lightgbm" else (mutate_buffer, bytes(state))
        assert killing_signal(predict, mutate(source, random.Random(seed))) is None, seed


def test_a_booster_of_another_object_is_refused(tmp_path):
    """Only an estimator's own booster is read."""
    booster = lightgbm.train({"verbose": -1}, lightgbm.Dataset(np.ones((50, 1)), np.arange(50)), 1)
    encoder = OrdinalEncoder().fit([["a"]])
    encoder.booster = booster
    with pytest.raises(InputError, match=r"not reviewed: lightgbm\.basic\.Booster"):
        estimators.save(encoder, tmp_path / "model.skops")


@pytest.mark.parametrize(
    ("estimator", "params", "message"),
    [
        ("lightgbm.LGBMClassifier", {"num_leafs": 5}, "cannot be fitted: unknown parameter num_leafs"),
        ("xgboost.XGBClassifier", {"max_dept": 5}, 'cannot be fitted: Parameters: { "max_dept" } are not used'),
        ("lightgbm.LGBMClassifier", {"num_leaves": 1}, "cannot be fitted: .*num_leaves"),
        ("xgboost.XGBClassifier", {"max_depth": -1}, "cannot be fitted: .*max_depth"),
        ("lightgbm.LGBMRanker", {}, "is fitted on groups, which an export has none of"),
        ("xgboost.XGBRanker", {}, "is fitted on groups, which an export has none of"),
    ],
)
def test_wrong_parameters_are_named(project, estimator, params, message):
    with pytest.raises(InputError, match=message) as caught:
        project.train(estimator=estimator, params=params)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_missing_library_is_one_line(project, saved, monkeypatch, library):
    folder = project.train(estimator=dict(zip(LIBRARIES, CLASSIFIERS, strict=True))[library])
    path = Path(folder.path) / "model" / "model.json"
    for error, message in (
        (
            ImportError("No module named it"),
            rf"{library} is not installed .*install the extra `predictions\[{library}\]",
        ),
        (
            OSError("libgomp.so.1: cannot open shared object file"),
            "libgomp.so.1: .*needs the system's package libgomp1",
        ),
    ):
        monkeypatch.setattr(
            boosters.importlib, "import_module", lambda _name, error=error: (_ for _ in ()).throw(error)
        )
        for fails in (lambda: estimators.load(saved[library]), lambda: load_model(path)):
            with pytest.raises(InputError, match=message):
                fails()
    monkeypatch.setattr(boosters, "DISTRIBUTIONS", {library: ("no-such-distribution",)})
    with monkeypatch.context() as patch:
        patch.setattr(boosters.importlib.metadata, "version", version_without(library))
        with pytest.raises(InputError, match=f"the model needs {library} .*, and this Python has none: install it"):
            load_model(path)


def version_without(library, version=importlib.metadata.version):
    def found(name):
        if name == library:
            raise PackageNotFoundError(name)
        return version(name)

    return found


def test_another_version_is_refused(project):
    folder = project.train(estimator="xgboost.XGBClassifier")
    path = Path(folder.path) / "model" / "model.json"
    manifest = json.loads(path.read_text())
    manifest["versions"]["xgboost"] = "1.0"
    path.write_text(json.dumps(manifest))
    with pytest.raises(
        InputError, match=r"trained with xgboost 1\.0, this Python has .*: install xgboost(-cpu)?==1\.0"
    ):
        load_model(path)


def test_the_text_that_was_checked_predicts_the_same(saved):
    """It is loaded without offsets, parameters and importances."""
    estimator = estimators.load(saved["lightgbm"])
    text = estimator.booster_.model_to_string()
    shorter = lightgbm_text.checked(text)
    assert len(shorter) < len(text)
    rows = np.random.default_rng(0).normal(100, 200, (500, 2))
    predict = [lightgbm.Booster(model_str=each).predict(rows) for each in (text, shorter)]
    assert (predict[0] == predict[1]).all()
