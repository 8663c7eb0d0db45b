"""A model file that was changed, with its hashes made to fit, is refused with one line or harmless."""

import io
import json
import os
import pickle
import random
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import joblib
import numpy as np
import pytest
from changedfiles import NAMED, ModelFile
from conftest import CHECKOUT
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.svm import SVC

from predictions.errors import InputError
from predictions.formats.manifest import ModelManifest
from predictions.formats.record_line import Column, split_lines, write_rows
from predictions.scoring.bins import CompiledPredictor
from predictions.scoring.compiler import compile_pipeline
from predictions.scoring.estimator import EstimatorPredictor
from predictions.scoring.files import load_model, save_model, sha256
from predictions.scoring.frame import FrameReader
from predictions.scoring.model import Model
from predictions.stages.fit import make_pipeline_for

CHANGES, ALL_CHANGES = 200, 1_000  # a fifth of them in compiled models
FEATURES = [Column("size", "real"), Column("count", "integer"), Column("kind", "text")]
RECORDS, GOLDEN = 300, 40


def make_models(folder):
    """Save a model of each kind, and records to score, into a folder."""
    folder.mkdir(exist_ok=True)
    random.seed(0)
    rows = [
        (
            b"%d" % number,
            random.choice((b"\\N", b"%.3f" % random.gauss(0, 1))),
            b"%d" % random.randrange(20),
            random.choice((b"\\N", b"red", b"green", b"blue", b"kind %d" % random.randrange(40))),
            b"\\N",
        )
        for number in range(RECORDS)
    ]
    lines = write_rows(rows)
    (folder / "records.txt").write_bytes(lines)
    frame, _bad = FrameReader(FEATURES).read(lines)
    labels = (frame["size"].fillna(0) > 0).astype(int) + (frame["count"] > 10) * (frame["kind"] == "red")
    seen = frame["kind"].mask(frame["kind"].isin(["kind 1", "kind 2"]), np.nan)  # and some are not seen
    frame = frame.assign(kind=seen)
    numbers = make_pipeline(SimpleImputer(add_indicator=True))
    one_hot = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=3)  # sparse
    linear = ColumnTransformer(
        [("numbers", numbers, ["size", "count"]), ("kind", one_hot, ["kind"])], sparse_threshold=1
    )
    histogram = HistGradientBoostingClassifier(max_iter=4, categorical_features=[2], min_samples_leaf=2, random_state=0)
    for name, pipeline in {
        "histogram": make_pipeline_for(histogram, FEATURES),
        "forest": make_pipeline_for(RandomForestClassifier(5, max_depth=5, random_state=0), FEATURES),
        "gradient": make_pipeline_for(GradientBoostingClassifier(n_estimators=4, random_state=0), FEATURES),
        "linear": Pipeline([("columns", linear), ("estimator", LogisticRegression(max_iter=1_000))]),
        "neighbours": make_pipeline_for(KNeighborsClassifier(algorithm="brute", metric="manhattan"), FEATURES),
        "vectors": make_pipeline_for(SVC(probability=True, random_state=0), FEATURES),
        "compiled": make_pipeline_for(HistGradientBoostingClassifier(max_iter=4, random_state=0), FEATURES),
    }.items():
        pipeline.fit(frame, labels)
        manifest = ModelManifest(features=FEATURES, classes=pipeline.classes_.tolist())
        compiled = compile_pipeline(pipeline, FEATURES) if name == "compiled" else None
        predictor = CompiledPredictor(compiled, FEATURES) if compiled else EstimatorPredictor(pipeline, manifest)
        golden = Model(predictor, manifest).golden_records(split_lines(lines)[:GOLDEN])
        (folder / name).mkdir(exist_ok=True)
        manifest = ModelManifest(features=FEATURES, classes=pipeline.classes_.tolist(), golden=golden)
        save_model(pipeline, manifest, folder / name, (compiled, 1) if compiled else None)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


def use_changed(models, *arguments):
    """Return how loading and using changed models ended."""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "tests/changedfiles.py", str(models), *arguments],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in process.stdout.splitlines()]


def is_right(result):
    return result["outcome"].startswith(("refused: ", "predicted: ")) and "\n" not in result["outcome"]


def test_changed_models_are_refused_with_one_line_or_harmless(models, full):
    seed, count = random.randrange(10**6), ALL_CHANGES if full else CHANGES
    results = use_changed(models, str(seed), str(count))
    assert len(results) == count
    assert [result for result in results if not is_right(result)] == [], f"seed {seed}"
    assert {result["outcome"].partition(":")[0] for result in results} == {"refused", "predicted"}


def test_what_would_crash_or_hang_scikit_learn_is_named(models):
    outcomes = {result["name"]: result["outcome"] for result in use_changed(models)}
    assert outcomes.keys() == NAMED.keys()
    for name, (_model, _change, message) in NAMED.items():
        assert re.fullmatch(
            rf"refused: \S+model.skops: .*{message}.*; restore it, or start a new release", outcomes[name]
        ), (name, outcomes[name])


@pytest.fixture
def changed(models, tmp_path):
    """Return a function that puts a file in the place of the forest's and returns the message that refuses it."""

    def changed(content):
        manifest = json.loads((models / "forest" / "model.json").read_text())
        (tmp_path / "model.skops").write_bytes(content)
        (tmp_path / "model.json").write_text(json.dumps(manifest | {"sha256": sha256(tmp_path / "model.skops")}))
        with pytest.raises(InputError) as refused:
            load_model(tmp_path / "model.json")
        assert "\n" not in str(refused.value)
        return str(refused.value)

    return changed


def written(file, **options):
    content = io.BytesIO()
    file.write(content, **options)
    return content.getvalue()


class Creates:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickled(payload):
    return pickle.dumps(payload)


def joblibbed(payload):
    content = io.BytesIO()
    joblib.dump([payload, np.zeros(10)], content)
    return content.getvalue()


@pytest.mark.parametrize("write", [pickled, joblibbed])
def test_nothing_is_unpickled(changed, tmp_path, write):
    created = tmp_path / "created"
    content = write(Creates(created))
    assert "not a file of skops" in changed(content)
    assert not created.exists()
    pickle.loads(pickled(Creates(created)))
    assert created.exists()  # so the test could fail


def test_no_array_is_unpickled(changed, models, tmp_path):
    created, file = tmp_path / "created", ModelFile(models / "forest" / "model.skops")
    file.set_array(next(iter(file.members)), np.array([Creates(created)], dtype=object), allow_pickle=True)
    assert "an array of objects, which numpy would unpickle" in changed(written(file))
    assert not created.exists()


@pytest.mark.parametrize(
    ("module", "name", "loader"),
    [
        ("os", "system", "FunctionNode"),
        ("os", "system", "ConstructorFromReduceNode"),
        ("os", "system", "ObjectNode"),
        ("os", "system", "ListNode"),
        ("builtins", "eval", "TypeNode"),
        ("builtins", "exec", "ConstructorFromReduceNode"),
        ("operator", "methodcaller", "OperatorFuncNode"),
        ("subprocess", "Popen", "ConstructorFromReduceNode"),
        ("sklearn.utils._testing", "check_skip_network", "LossNode"),
    ],
)
def test_nothing_that_a_file_names_is_called(changed, models, tmp_path, module, name, loader):
    created, file = tmp_path / "created", ModelFile(models / "forest" / "model.skops")
    text = {"__class__": "str", "__module__": "builtins", "__loader__": "JsonNode", "content": f'"touch {created}"'}
    arguments = {"__class__": "tuple", "__module__": "builtins", "__loader__": "TupleNode", "content": [text]}
    content = arguments["content"] if loader == "ListNode" else arguments
    call = {"__class__": name, "__module__": module, "__loader__": loader, "content": content, "attrs": arguments}
    file.attribute("verbose").update(call | {"__reduce__": {"args": arguments}, "__id__": 10**6})
    assert f"holds types that were not reviewed: {module}.{name}" in changed(written(file))
    assert not created.exists()


def test_a_file_that_unpacks_to_too_much_is_refused(changed, models):
    file = ModelFile(models / "forest" / "model.skops")
    assert "compressed in another way than deflate" in changed(written(file, compression=zipfile.ZIP_LZMA))
    file.members["large.bin"] = bytes(20 << 20)
    assert "unpacks to more than 100 times its size" in changed(written(file, compression=zipfile.ZIP_DEFLATED))


def test_an_array_larger_than_its_bytes_is_refused(changed, models):
    file = ModelFile(models / "forest" / "model.skops")
    name = next(name for name in file.members if file.array(name).ndim == 1)
    file.set_header(name, r"'shape': \(.*?\)", "'shape': (1000000000000,)")
    assert f"{name} has " in changed(written(file))


def test_objects_that_refer_to_one_another_without_end_are_refused(changed, models):
    file = ModelFile(models / "forest" / "model.skops")
    node = {"__class__": "list", "__module__": "builtins", "__loader__": "ListNode", "content": []}
    for number in range(60):  # a walk over them would meet 2**60 objects
        node = {**node, "__id__": 10**6 + number, "content": [node, {"__id__": 10**6 + number - 1}] if number else []}
    file.attribute("verbose").update(node)
    assert "refer to one another too often" in changed(written(file))


def test_an_array_that_something_else_would_change_is_read_only(models):
    model = load_model(models / "histogram" / "model.json")
    for stage in model.predictor.estimator[-1]._predictors:
        for tree in stage:
            assert not tree.nodes.flags.writeable
