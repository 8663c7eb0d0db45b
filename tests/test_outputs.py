"""All that a model says: probabilities of all classes, thresholds, several values; from the model to the answer."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_orders, manifest_of
from hypothesis import given
from hypothesis import strategies as st
from inprocess import call, script
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mapper
import reducer
from loader.compare import compare_range
from loader.plan import Plan
from predictions.errors import InputError
from predictions.formats.document import to_file
from predictions.formats.hfile.reader import HFileReader
from predictions.formats.manifest import ModelManifest
from predictions.formats.prediction_line import NOT_UNIQUE, cells, names_of, parse_line, qualifier
from predictions.formats.record_line import Column, escape, split_lines, write_rows
from predictions.hbase.rows import Cell, Row
from predictions.hbase.server import Server
from predictions.lookup.answer import AnswerBuilder
from predictions.lookup.served import ServedRelease
from predictions.scoring.estimator import EstimatorPredictor
from predictions.scoring.files import load_model
from predictions.scoring.model import LARGEST_VALUE, Model
from predictions.scoring.threshold import split_threshold
from predictions.settings import ModelSettings, load_settings
from predictions.sources.reader import Columns, Record
from predictions.stages.compare import compare_releases, compared_labels, describe_served
from predictions.stages.fit import make_estimator, output_fields
from predictions.storage import Storage
from predictions.task.current import Current

NUMBERS = [Column("a", "real"), Column("b", "real")]
THREE = np.array([[0.2, 0.5, 0.3], [0.25, 0.25, 0.5], [1.0, 0.0, 0.0]])


def model_of(predicted, classes=None, **fields):
    """Return a model that predicts these values, whatever the records."""
    manifest = ModelManifest(features=NUMBERS, classes=classes, **fields)
    estimator = DummyClassifier() if classes else LinearRegression()
    estimator.predict_proba = estimator.predict = lambda frame: predicted[: len(frame)]
    return Model(EstimatorPredictor(estimator, manifest), manifest)


def cells_of(model, rows=3):
    scores = model.score(write_rows([b"id", b"1", b"2", b"\\N"] for _row in range(rows)))
    return dict(zip(model.manifest.columns, scores.cells, strict=True)), scores.errors


@given(st.lists(st.text(), min_size=1))
def test_names_in_columns_are_escaped(names):
    column = qualifier(*names)
    assert (column.count(":"), names_of(column)) == (len(names) - 1, tuple(names))


def test_each_class_has_its_column_whatever_its_name():
    columns, errors = cells_of(model_of(THREE, ["a:b", "50 %", "tab\t"], outputs=["probabilities"]))
    assert columns == {
        "prediction": [b"50 %", b"tab\\t", b"a:b"],
        "probability": [b"0.5", b"0.5", b"1"],
        "probability:a%3Ab": [b"0.2", b"0.25", b"1"],
        "probability:50 %25": [b"0.5", b"0.25", b"0"],
        "probability:tab\t": [b"0.3", b"0.5", b"0"],
    }
    assert errors == [b"\\N"] * 3


def test_the_most_probable_classes_are_in_one_cell_in_falling_order():
    classes = ['qu"ote', "back\\slash", "tab\té"]
    columns, _errors = cells_of(model_of(THREE, classes, outputs=["probabilities"], top=2))
    line = parse_line(b"\t".join([b"0000:1", *(cell[0] for cell in columns.values()), b"f", b"1", b"\\N"]))
    text = cells(line, list(columns))[b"p:probabilities"]
    assert list(json.loads(text).items()) == [("back\\slash", 0.5), ("tab\té", 0.3)]
    # Of equally probable classes, the first one is kept.
    assert [len(json.loads(cell.replace(b"\\\\", b"\\"))) for cell in columns["probabilities"]] == [2, 2, 2]
    assert b"qu" in columns["probabilities"][1]
    assert b"slash" not in columns["probabilities"][1]


def test_most_probable_classes_that_do_not_fit_a_cell_fail_the_record():
    classes = ["a", "b" * (LARGEST_VALUE // 2), "c" * (LARGEST_VALUE // 2)]
    columns, errors = cells_of(model_of(THREE, classes, outputs=["probabilities"], top=2))
    assert [error == b"\\N" for error in errors] == [False, True, True]
    assert re.match(rb"probabilities: [\d,]+ bytes, more than HBase takes", errors[0])
    assert [cell[0] for cell in columns.values()] == [b"\\N"] * 3


def test_the_second_class_is_predicted_from_its_threshold_on():
    shares = np.array([[0.7, 0.3], [0.7 + 1e-9, 0.3 - 1e-9], [0.2, 0.8]])
    columns, _errors = cells_of(model_of(shares, ["no", "yes"], threshold=0.3))
    assert columns == {"prediction": [b"yes", b"no", b"yes"], "probability": [b"0.3", b"0.7", b"0.8"]}
    columns, _errors = cells_of(model_of(shares, ["no", "yes"], threshold=0.7, positive=0, outputs=["probabilities"]))
    assert columns["prediction"] == [b"no", b"no", b"yes"]
    assert columns["probability:yes"] == [b"0.3", b"0.3", b"0.8"]


@pytest.mark.parametrize("fields", [{"threshold": 0.3}, {"outputs": ["probabilities"]}])
def test_a_share_that_is_not_a_number_fails_the_record(fields):
    columns, errors = cells_of(model_of(np.array([[0.5, 0.5], [np.nan, np.nan]]), ["no", "yes"], **fields), 2)
    assert errors == [b"\\N", b"prediction: not a finite number"]
    assert {cell[1] for cell in columns.values()} == {b"\\N"}


@pytest.mark.parametrize(
    "estimator",
    [
        FixedThresholdClassifier(LogisticRegression(), threshold=0.3, pos_label="early"),
        FixedThresholdClassifier(LogisticRegression(), threshold=0.2, pos_label="late"),
        FixedThresholdClassifier(LogisticRegression()),
        TunedThresholdClassifierCV(LogisticRegression(), random_state=0),
    ],
)
def test_an_estimators_own_threshold_decides_as_the_estimator_does(estimator):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(400, 2)), columns=["a", "b"])
    labels = np.where(frame["a"] + rng.normal(size=400) > 1, "late", "early")
    if isinstance(estimator, TunedThresholdClassifierCV):
        labels = (labels == "late").astype(int)
    fitted = make_pipeline(StandardScaler(), estimator).fit(frame, labels)
    inner, threshold = split_threshold(fitted)
    assert isinstance(inner[-1], LogisticRegression)
    settings = ModelSettings(label="y", features=["a", "b"])
    manifest = ModelManifest(
        features=NUMBERS, classes=fitted.classes_.tolist(), **output_fields(settings, inner, threshold, labels)
    )
    block = write_rows([b"id", *(b"%r" % value for value in row), b"\\N"] for row in frame.to_numpy().tolist())
    scores = Model(EstimatorPredictor(inner, manifest), manifest).score(block)
    assert [cell.decode() for cell in scores.predictions] == list(map(str, fitted.predict(frame)))
    argmax = fitted.classes_[fitted.predict_proba(frame).argmax(axis=1)]
    assert (argmax != fitted.predict(frame)).any() == (threshold.share != 0.5)
    # The settings come first.
    own = output_fields(settings.model_copy(update={"threshold": 0.9}), inner, threshold, labels)
    assert (own["threshold"], own["positive"]) == (0.9, 1)


def test_a_threshold_of_a_decision_function_is_refused():
    estimator = FixedThresholdClassifier(LogisticRegression(), response_method="decision_function")
    with pytest.raises(InputError, match='FixedThresholdClassifier.*give it response_method="predict_proba"'):
        split_threshold(estimator.fit([[0.0], [1.0]], [0, 1]))


@pytest.mark.parametrize(("names", "expected"), [(None, ["0", "1", "2"]), (["low", "50 %", "high"],) * 2])
def test_a_regressor_of_several_values_has_a_column_for_each(names, expected):
    values = np.array([[1.0, 2.0, 3.0], [4.0, np.inf, 6.0], [-1e-9, 0.0, 1234567.8]])
    regressor = LinearRegression().fit(np.zeros((3, 2)), np.zeros((3, 3)))
    if names:
        regressor.output_names_ = names
    settings = ModelSettings(label="y", features=["a", "b"], estimator="LinearRegression")
    fields = output_fields(settings, regressor, None, regressor.predict(np.zeros((1, 2))))
    columns, errors = cells_of(model_of(values, None, **fields))
    assert list(columns) == ["prediction", "probability", *(qualifier("prediction", name) for name in expected)]
    assert columns["prediction"] == columns[qualifier("prediction", expected[0])] == [b"1", b"\\N", b"-1e-09"]
    assert list(columns.values())[-1] == [b"3", b"\\N", b"1234568"]
    assert errors[1] == b"prediction: not a finite number"


@pytest.mark.parametrize(
    ("estimator", "changes", "message"),
    [
        (LinearRegression(), {"outputs": ["probabilities"]}, r"model\.outputs: .* is a regressor"),
        (LinearRegression(), {"threshold": 0.3}, r"model\.threshold: .* is a regressor"),
        (DummyClassifier(), {"threshold": 0.3}, "is for two classes, but y has 3"),
        (DummyClassifier(), {"outputs": ["probabilities"]}, r"the class 'xxx.*1,001 bytes.*set model\.top"),
    ],
)
def test_what_an_estimator_does_not_say_is_refused(estimator, changes, message):
    labels = [0, 1, 2] if isinstance(estimator, LinearRegression) else ["a", "b", "x" * 1001]
    settings = ModelSettings(label="y", features=["a"]).model_copy(update=changes)
    with pytest.raises(InputError, match=message):
        output_fields(settings, estimator.fit(np.zeros((3, 1)), labels), None, np.zeros(1))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("top = 5", "top: is for probabilities"),
        ("threshold = 1", "model.threshold: Input should be less than 1"),
        ('outputs = ["shares"]', "model.outputs.0: Input should be 'probabilities'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(orders, keys, message):
    path = orders / "predictions.toml"
    path.write_text(path.read_text().replace("[hadoop]", f"{keys}\n[hadoop]"))
    with pytest.raises(InputError, match=message):
        load_settings(path)


OUTPUTS = {
    "compiled": 'outputs = ["probabilities", "contributions"]\nthreshold = 0.3\n',
    "scikit-learn": 'outputs = ["probabilities", "contributions"]\ntop = 2\nestimator = "sklearn.linear_model.LogisticRegression"\n',
}


@pytest.fixture(params=OUTPUTS, scope="module")
def release(request, tmp_path_factory):
    """A scored release of the orders with further outputs, and one amount that is not a number. No test changes it."""
    orders = make_orders(tmp_path_factory.mktemp("outputs"))
    path = orders / "predictions.toml"
    text = path.read_text().replace("[hadoop]", f"{OUTPUTS[request.param]}\n[hadoop]")
    path.write_text(text if request.param == "compiled" else text.replace("params = { max_iter = 10 }", ""))
    for stage in ("export", "train"):
        assert call([stage], orders).returncode == 0
    folder = Storage(str(orders / "storage"), "orders").release()
    [export] = folder.files("export")
    data = Path(export).read_bytes()
    Path(export).write_bytes(re.sub(rb"(?m)^(order-000\t[^\t]*\t)[^\t]*", rb"\1twelve", data))
    assert call(["score", "--runner", "local"], orders).returncode == 1
    return Storage(str(orders / "storage"), "orders").release()


def lines_of(folder):
    lines = [line for path in folder.files("scored") for block in folder.blocks(path) for line in split_lines(block)]
    return {line.partition(b"\t")[0]: line for line in lines}


def test_from_the_model_to_the_answer(release, tmp_path):
    """The lines, the HFile, the loader's rows and the answer have what the model says."""
    columns, lines = manifest_of(release).columns, lines_of(release)
    model = load_model(Path(release.path, "model", "model.json"))
    assert columns == model.manifest.columns
    assert (columns[2:], model.manifest.engine) in [
        (["probability:0", "probability:1", "contributions"], "numpy"),
        (["probabilities", "contributions"], "scikit-learn"),
    ]
    # From the plain pipe come the same lines, and the HFile with their cells.
    records = b"".join(Path(path).read_bytes() for path in release.files("export"))
    mapped = script(mapper.main, f"{release.path}/model/model.json", release.release, stdin=records).stdout
    (tmp_path / "current.json").write_bytes(to_file(describe_served(None, release, 1)))
    options = ["--hfiles", tmp_path, "--current", tmp_path / "current.json"]
    ended = script(reducer.main, *options, stdin=b"".join(sorted(mapped.splitlines(keepends=True))))
    assert ended.stdout.splitlines() == list(lines.values())
    with open(tmp_path / "p" / "part-00000", "rb") as file:
        written = [(cell.row, b"p:" + cell.qualifier, cell.value) for cell in HFileReader(file, "x").read()]
    expected = [
        (key, column, value)
        for key, line in lines.items()
        for column, value in sorted(cells(parse_line(line), columns).items())
    ]
    assert written == expected
    # What was put is what a lookup reads.
    served = ServedRelease(release.release, manifest_of(release), 0)
    builder = AnswerBuilder(served, {}, None)
    names = {column.name: index for index, column in enumerate(manifest_of(release).features)}
    plain = Columns(
        names, lambda _name, _values: [b"x"], lambda _name, values: values, lambda *_: InputError("missing")
    )
    record = Record(plain, [0] * len(names))
    for line in map(parse_line, lines.values()):
        row = Row(line.row_key, {name: Cell(value, 1) for name, value in cells(line, columns).items()})
        answer = builder.answer("id", record, row)
        if line.error != b"\\N":
            assert (answer.prediction, answer.probabilities, answer.contributions) == (None, None, None)
            continue
        assert answer.probabilities[answer.prediction] == answer.probability
        assert sum(answer.probabilities.values()) == pytest.approx(1)
        assert set(answer.probabilities) == {0, 1}
        threshold = model.manifest.threshold or 0.5
        assert answer.prediction == int(answer.probabilities[1] >= threshold)
        assert json.loads(json.dumps(answer.as_json()))["probabilities"].keys() == {"0", "1"}
        assert set(answer.contributions) <= set(names)
        assert 0 < len(answer.contributions) <= (model.manifest.top or len(names))
        if model.manifest.top is None:  # then they add up to the log-odds
            [expected] = model.manifest.contributions.expected
            share = answer.probabilities[1]
            assert sum(answer.contributions.values()) + expected == pytest.approx(np.log(share / (1 - share)), abs=2e-3)


def test_verify_compares_further_cells(release):
    """A further cell of the table that is not the line's is a difference."""
    columns, lines = manifest_of(release).columns, lines_of(release)
    plan = Plan(Server("localhost", 1), "orders", release.release, "", [], columns=columns)
    rows = [
        Row(line.row_key, {name: Cell(value, int(line.scored)) for name, value in cells(line, columns).items()})
        for line in map(parse_line, lines.values())
    ]

    class Table:
        def scan(self, *_arguments, **_options):
            return [rows]

    block = b"".join(line + b"\n" for line in lines.values())
    compare = partial(compare_range, Table(), plan.table, plan.range(0), [block], plan.columns, 500, lambda _rows: None)
    assert (compare().mismatches, compare().rows) == ({}, 400)
    changed = f"p:{columns[-1]}".encode()
    rows[7].cells[changed] = Cell(b"0.123", rows[7].cells[changed].timestamp)
    assert compare().mismatches == {"different": 1}


def test_lines_of_all_kinds_have_the_same_fields(release, tmp_path):
    """Unreadable, unscored and conflicting lines too, so that a reducer reads them all."""
    model = f"{release.path}/model/model.json"
    fields = 6 + len(manifest_of(release).columns) - 2
    stdin = b"1\tAT\t5\t2\t0\n1\tAT\t6\t2\t0\nnot a record\n2\tAT\tx\t2\t0\n"
    for options in ((), ("--unscored",)):
        mapped = script(mapper.main, model, release.release, *options, stdin=stdin)
        lines = sorted(mapped.stdout.splitlines(keepends=True))
        assert {line.count(b"\t") + 1 for line in lines} == {fields}
        if options:
            (tmp_path / "current.json").write_bytes(to_file(describe_served(None, release, 1)))
            options = ("--current", tmp_path / "current.json", "--score", model, release.release)
        reduced = script(reducer.main, *options, stdin=b"".join(lines)).stdout.splitlines()
        assert {line.count(b"\t") + 1 for line in reduced} == {fields}
        errors = {parse_line(line).error for line in reduced}
        assert errors == {NOT_UNIQUE, b"amount: not a number", escape(b"1 fields, not 5: not a record")}


def test_unchanged_records_keep_their_further_cells(release, tmp_path):
    first, labels, parts = lines_of(release), compared_labels(release, release), release.files("scored")
    columns, points = manifest_of(release).columns, release.scored.split_points
    current = Current.of(release.release, labels, points, parts, [], columns)
    (tmp_path / "current.json").write_bytes(to_file(current))
    model = f"{release.path}/model/model.json"
    records = b"".join(Path(path).read_bytes() for path in release.files("export"))
    unscored = script(mapper.main, model, release.release, "--unscored", stdin=records).stdout
    options = ["--current", tmp_path / "current.json", "--score", tmp_path / "missing.json", release.release]
    failed = b"".join(line + b"\n" for line in first.values() if not line.endswith(b"\t\\N"))
    assert failed  # a failed record's line is carried over, too
    ended = script(reducer.main, *options, stdin=b"".join(sorted(unscored.splitlines(keepends=True))))
    assert (ended.returncode, ended.stdout.splitlines()) == (0, list(first.values()))
    # A comparison of a release with itself finds no difference.
    [compared] = compare_releases(release, release, 1, lambda _share: None).each
    assert (compared.both, compared.changed, compared.stability) == (399, 0, 0)


def test_golden_records_hold_the_further_cells(release, tmp_path):
    model = Path(shutil.copytree(Path(release.path, "model"), tmp_path / "model"), "model.json")
    manifest = json.loads(model.read_text())
    column = manifest_of(release).columns[-1]
    golden = manifest["golden"][2]
    golden[column] = re.sub(r"0\.\d+", "0.4999", golden[column], count=1)
    model.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="does not predict what it did"):
        load_model(model)


def test_an_estimator_with_a_threshold_is_trained_as_any_other():
    settings = ModelSettings(label="y", features=["a"], estimator=f"{__name__}.thrifty", params={"threshold": 0.2})
    assert make_estimator(settings).threshold == 0.2


def thrifty(threshold):
    return FixedThresholdClassifier(LogisticRegression(), threshold=threshold)
