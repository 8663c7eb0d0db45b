"""Several labels in one pass: each record is read and shuffled once, and its row has what the models of all labels say."""

import json
import re
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_orders, manifest_of
from inprocess import call, script

import mapper
import reducer
from predictions.cli.get import print_table
from predictions.cli.run import _require_columns
from predictions.comparison.comparison import Compared, compare
from predictions.comparison.distribution import Bins
from predictions.errors import InputError
from predictions.formats import prediction_line
from predictions.formats.document import to_file
from predictions.formats.hfile.reader import HFileReader
from predictions.formats.manifest import FeatureType, ModelManifest, Package, ReleaseModels, Training
from predictions.formats.prediction_line import block_bytes, cells, parse_line, place_of
from predictions.formats.record_line import BLOCK_BYTES, Column, join_lines, split_lines, write_rows
from predictions.hbase.releases import Known, Pointer, listed
from predictions.hbase.rows import Cell, Row
from predictions.lookup.answer import Answer, AnswerBuilder, LabelAnswer
from predictions.lookup.client import Client
from predictions.lookup.online import Scorer
from predictions.lookup.served import ServedRelease
from predictions.report.report import render
from predictions.scoring import bins
from predictions.scoring.files import load_models
from predictions.scoring.model import Model, Models
from predictions.service.schemas import AnswerOut
from predictions.settings import load_settings
from predictions.sources import open_reader
from predictions.stages.activate import gates
from predictions.stages.compare import compare_releases, compared_labels, describe_served, to_json
from predictions.stages.score import score, take_models
from predictions.storage import Storage
from predictions.task.current import Current

SIZE = "size:%"  # a label whose name needs escapes
QUERY = (
    f"""SELECT *, CASE WHEN amount > 250 THEN 'large' WHEN amount IS NOT NULL THEN 'sm:all' END AS "{SIZE}", """
    "items * amount AS total FROM orders"
)
SETTINGS = f"""
name = "orders"
[database]
url = "sqlite:///orders.db"
query = '''{QUERY}'''
id = "id"
[[model]]
label = "paid"
features = ["country", "amount", "items"]
params = {{ max_iter = 10 }}
outputs = ["probabilities"]
threshold = 0.4
[[model]]
label = "{SIZE}"
estimator = "sklearn.linear_model.LogisticRegression"
[[model]]
label = "total"
estimator = "sklearn.ensemble.HistGradientBoostingRegressor"
params = {{ max_iter = 10 }}
[hadoop]
storage = "storage"
"""
PAID = ["paid:prediction", "paid:probability", "paid:probability:0", "paid:probability:1", "paid:error"]
COLUMNS = [
    *PAID,
    *("size%3A%25:prediction", "size%3A%25:probability", "size%3A%25:error"),
    *("total:prediction", "total:probability", "total:error"),
]
FAILED = "order-007"


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    """A scored release of the orders with three labels, and one amount that is not a number. No test changes it."""
    folder = make_orders(tmp_path_factory.mktemp("labels"))
    (folder / "predictions.toml").write_text(SETTINGS)
    with closing(sqlite3.connect(folder / "orders.db")) as connection, connection:
        connection.execute("UPDATE orders SET amount = 'twelve' WHERE id = ?", (FAILED,))
    for stage in (("export",), ("train",)):
        ended = call(stage, folder)
        assert ended.returncode == 0, ended.stderr
    assert [line.partition(":")[0] for line in ended.stderr.splitlines() if "trained in" in line] == [
        "paid",
        "size",
        "total",
    ]
    ended = call(["score", "--runner", "local"], folder, processes=True)
    assert ended.returncode == 1, ended.stderr
    return folder


@pytest.fixture(scope="module")
def release(orders):
    return Storage(str(orders / "storage"), "orders").release()


def lines_of(folder):
    lines = [line for path in folder.files("scored") for block in folder.blocks(path) for line in split_lines(block)]
    return {line.partition(b"\t")[0].partition(b":")[2]: parse_line(line) for line in lines}


def test_each_label_has_what_its_model_says_alone(release, tmp_path):
    manifest, models = manifest_of(release), release.models
    assert (manifest.columns, models.columns) == (COLUMNS, COLUMNS)
    assert [model.engine for model in models.each] == ["numpy", "scikit-learn", "numpy"]
    assert [model.task for model in manifest.models] == ["classification", "classification", "regression"]
    assert (manifest.model, manifest.task, manifest.label) == (None, None, None)
    assert models.task_files == ["0-model.npz", "1-model.skops", "2-model.npz", "model.json"]
    records = [
        line for path in release.files("export") for block in release.blocks(path) for line in split_lines(block)
    ]
    lines = lines_of(release)
    columns = zip(*(lines[line.split(b"\t")[0]].cells for line in records), strict=True)
    assert len(lines) == len(records) == 400
    for number, model in enumerate(models.each):
        # As a release of this label alone, whose lines have no other label.
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in model.files:
            if name != "model.json":
                (folder / name).write_bytes(release.read(f"model/{models.prefix(number)}{name}"))
        (folder / "model.json").write_bytes(ReleaseModels([model]).to_file())
        alone = join_lines(b"\t".join((*line.split(b"\t")[:4], line.split(b"\t")[4 + number])) for line in records)
        scores = load_models(folder / "model.json").score(alone)
        for expected in scores.cells:
            assert list(next(columns)) == expected
        assert set(next(columns)) == {b"\\N"}  # LABEL:error: the record failed as a whole
    assert [(name, line.error) for name, line in lines.items() if line.error != b"\\N"] == [
        (FAILED.encode(), b"amount: not a number")
    ]


def test_the_counts_are_those_of_each_label(release, orders):
    with closing(sqlite3.connect(orders / "orders.db")) as connection:
        counts = connection.execute(f'SELECT count(paid), count("{SIZE}"), count(total) FROM ({QUERY})').fetchone()
    export = manifest_of(release).export
    assert tuple(export.labelled_each) == counts
    assert export.labelled == counts[0]
    assert [model.training.labelled for model in release.models.each] == list(counts)


def answers_of(release, settings, online=False):
    """Return the answers to all records, from what was loaded."""
    served = ServedRelease(release.release, manifest_of(release), 0)
    builder = AnswerBuilder(served, {}, None)
    lines = lines_of(release)
    ids = [name.decode() for name in lines]
    with closing(open_reader(settings.database)()) as reader:
        records = reader.records(ids)
    rows = {
        name: Row(line.row_key, {column: Cell(value, 1) for column, value in cells(line, COLUMNS).items()})
        for name, line in lines.items()
    }
    answers = [builder.answer(name, records[name], None if online else rows[name.encode()]) for name in ids]
    if online:
        answers = Scorer(settings.hadoop.storage, "orders").rescore(answers, records, builder, served)
    return {answer.id: answer for answer in answers}


@pytest.mark.parametrize("online", [False, True])
def test_an_answer_has_all_labels(release, orders, online):
    answers, lines = answers_of(release, load_settings(orders / "predictions.toml"), online), lines_of(release)
    models = [model.sha256 for model in release.models.each]
    for name, answer in answers.items():
        assert (answer.prediction, answer.model, answer.status) == (None, None, "failed" if name == FAILED else "fresh")
        paid, size, total = answer.labels.values()
        assert list(answer.labels) == ["paid", SIZE, "total"]
        assert [paid.model, size.model, total.model] == models
        if name == FAILED:
            assert (answer.error, paid.prediction, paid.error) == ("amount: not a number", None, None)
            continue
        line = dict(zip(COLUMNS, lines[name.encode()].cells, strict=True))
        assert paid.prediction == int(line["paid:prediction"]) == int(paid.probabilities[1] >= 0.4)
        assert paid.probabilities == {label: float(line[f"paid:probability:{label}"]) for label in (0, 1)}
        assert size.prediction == line["size%3A%25:prediction"].decode()
        assert size.prediction in ("large", "sm:all")
        assert total.prediction == float(line["total:prediction"])
        assert total.probability is None
    document = json.loads(json.dumps(answers["order-001"].as_json()))
    assert (
        AnswerOut.model_validate(document).labels["paid"].probabilities == document["labels"]["paid"]["probabilities"]
    )
    assert document["labels"]["total"].keys() == {"prediction", "model"}
    assert json.loads(json.dumps(answers[FAILED].as_json()))["labels"]["paid"]["prediction"] is None


def test_frames_and_tables_have_all_labels(release, orders, monkeypatch, capsys):
    settings = load_settings(orders / "predictions.toml")
    answers = answers_of(release, settings)
    monkeypatch.setattr(Client, "get_many", lambda _client, ids: [answers[name] for name in ids])
    with Client(settings) as client:
        joined = client.join(pd.DataFrame({"id": ["order-001", FAILED]}))
    assert list(joined.columns[2:8]) == [
        *("paid:prediction", "size%3A%25:prediction", "total:prediction"),
        *("paid:probability", "size%3A%25:probability", "total:probability"),
    ]
    assert joined["paid:prediction"].tolist() == [answers["order-001"].labels["paid"].prediction, pd.NA]
    assert joined["total:prediction"].dtype == "Float64"
    list(print_table([answers["order-001"]]))
    list(print_table([answers["order-001"], answers[FAILED]]))
    shown = capsys.readouterr().out
    assert f"total: {answers['order-001'].labels['total'].prediction}" in shown
    assert re.search(rf"{SIZE}\s+{answers['order-001'].labels[SIZE].prediction} \(0\.\d+\)", shown)


def test_a_label_may_fail_alone():
    label = LabelAnswer(error="prediction: not a finite number")
    answer = Answer("7", "fresh", labels={"late": LabelAnswer(1, 0.75), "delay": label})
    assert answer.as_json()["labels"] == {
        "late": {"prediction": 1, "probability": 0.75},
        "delay": {"prediction": None, "error": "prediction: not a finite number"},
    }


class Regressor:
    """Predict 1, except for the rows of `bad`, which have a reason."""

    def __init__(self, bad):
        self.bad = bad

    def predict(self, _block, ends):
        return np.arange(1.0, len(ends) + 1), dict(self.bad)


def models_of(**bad):
    """Return models of labels that fail for these rows."""
    models = {}
    for label, rows in bad.items():
        manifest = ModelManifest(features=[Column("a", "real")], label=Column(label, "real"))
        models[label] = Model(Regressor(rows), manifest)
    return Models(models, ReleaseModels([model.manifest for model in models.values()]))


def test_an_error_is_the_records_only_if_no_label_has_a_prediction():
    same = {3: "a: not a number"}
    large = dict.fromkeys((1, 2, 5), "too large")
    models = models_of(x=large | same, **{"y\t": {2: "not finite", 4: "not finite"} | same})
    scores = models.score(write_rows([b"id", b"1", b"0"] for _row in range(6)))
    columns = dict(zip(models.columns, scores.cells, strict=True))
    assert scores.errors == [*(b"\\N", b"\\N", b"x: too large; y\\t: not finite", b"a: not a number", b"\\N", b"\\N")]
    assert columns["x:error"] == [b"\\N", b"too large", b"\\N", b"\\N", b"\\N", b"too large"]
    assert columns["y\t:error"] == [b"\\N", b"\\N", b"\\N", b"\\N", b"not finite", b"\\N"]
    assert columns["x:prediction"] == [b"1", b"\\N", b"\\N", b"\\N", b"5", b"\\N"]
    assert columns["y\t:prediction"] == [b"1", b"2", b"\\N", b"\\N", b"\\N", b"6"]


def test_the_features_of_a_block_are_read_once(release, monkeypatch):
    calls = []
    original = bins._words
    monkeypatch.setattr(bins, "_words", lambda *arguments: calls.append(arguments) or original(*arguments))
    models = load_models(Path(release.path, "model", "model.json"))
    block = write_rows([b"1", b"AT", b"5", b"2", b"\\N"] for _row in range(3))
    calls.clear()
    first = models.score(block)
    assert len(calls) == 1  # for two compiled models
    other = block.replace(b"AT", b"CH")
    models.score(other)
    assert len(calls) == 2
    assert models.score(block).cells == first.cells


def test_of_many_cells_fewer_records_are_scored_at_once(release, monkeypatch):
    """A thousand classes of records of a few bytes would take 10 GB."""
    assert block_bytes(len(COLUMNS)) == BLOCK_BYTES
    assert block_bytes(2_000) == BLOCK_BYTES // 100
    sizes = []
    monkeypatch.setattr(mapper, "read_blocks", lambda _stream, size: sizes.append(size) or [])
    monkeypatch.setattr(prediction_line, "_MANY", 1)
    script(mapper.main, f"{release.path}/model/model.json", release.release)
    assert sizes == [BLOCK_BYTES // len(COLUMNS)]


def test_the_hfile_has_the_cells_of_all_labels(release, tmp_path):
    lines = lines_of(release)
    (tmp_path / "current.json").write_bytes(to_file(describe_served(None, release, 1)))
    options = ["--hfiles", tmp_path, "--current", tmp_path / "current.json"]
    ended = script(reducer.main, *options, stdin=b"".join(line.join() + b"\n" for line in lines.values()))
    assert ended.returncode == 0, ended.stderr
    with open(tmp_path / "p" / "part-00000", "rb") as file:
        written = [(cell.row, b"p:" + cell.qualifier, cell.value) for cell in HFileReader(file, "x").read()]
    expected = [
        (line.row_key, column, value)
        for line in lines.values()
        for column, value in sorted(cells(line, COLUMNS).items())
    ]
    assert written == expected
    # The reducer's comparison, with no release before it, has each label's distribution.
    state = json.loads((tmp_path / "part-00000.comparison.json").read_bytes())
    assert [label["after"]["rows"] for label in state] == [400, 400, 400]


def test_only_changed_records_are_scored(release, orders, tmp_path):
    orders = shutil.copytree(orders, tmp_path / "orders")
    settings = load_settings(orders / "predictions.toml")
    with closing(sqlite3.connect(orders / "orders.db")) as connection, connection:
        connection.execute("UPDATE orders SET amount = amount + 1 WHERE rowid % 100 = 50")
    assert call(["export"], orders).returncode == 0
    second = Storage(settings.hadoop.storage, "orders").release()
    take_models(second, release)
    scored = score(settings, second, "local", lambda _share: None, release, True)
    before, after = lines_of(release), lines_of(second)
    changed = [name for name, line in after.items() if line.record != before[name].record]
    assert len(changed) == 4
    assert scored.carried == 396
    assert all(line == before[name] for name, line in after.items() if name not in changed)
    full = load_models(Path(release.path, "model", "model.json")).score(write_block(second, changed))
    assert [after[name].cells for name in changed] == list(zip(*full.cells, strict=True))
    with pytest.raises(
        InputError, match="predicts paid, size:%, total from country, amount, items; the settings ask for"
    ):
        _require_columns(load_settings(one_label(orders, "paid")), release)


def write_block(folder, names):
    """Return the record lines of some records, without the other labels."""
    lines = {
        line.split(b"\t")[0]: line
        for path in folder.files("export")
        for block in folder.blocks(path)
        for line in split_lines(block)
    }
    return join_lines(b"\t".join(lines[name].split(b"\t")[:5]) for name in names)


def one_label(orders, label):
    """Write settings with one of the labels, and return their path."""
    path = orders / f"{label}.toml"
    head, *tables = re.split(r"(?m)^\[\[model\]\]\n", SETTINGS)
    [table] = [table for table in tables if f'label = "{label}"' in table]
    features = "" if "features" in table else 'features = ["country", "amount", "items"]\n'
    storage = "" if "[hadoop]" in table else '[hadoop]\nstorage = "storage"\n'
    path.write_text(f"{head}[model]\n{features}{table}{storage}")
    return path


@pytest.fixture(scope="module")
def single(orders, release):
    """A release of the label `total` alone, whose columns have no label."""
    path = one_label(orders, "total")
    for stage in ("export", "train", "score --runner local"):
        assert call(["--settings", str(path), *stage.split()], orders).returncode in (0, 1)
    folder = Storage(str(orders / "storage"), "orders").release()
    assert manifest_of(folder).columns == ["prediction", "probability"]
    return folder


def test_releases_with_other_labels_are_compared_label_by_label(release, single):
    limits = load_settings(Path(release.path).parents[2] / "predictions.toml").gates
    for before, after in ((release, release), (single, release), (release, single), (None, release)):
        comparisons = compare_releases(before, after, 1, lambda _share: None)
        manifest = manifest_of(after)
        data = json.loads(to_json(comparisons, before and before.release, after.release))
        verdicts = gates(limits, manifest, data)
        assert all(gate.passed for gate in verdicts), verdicts
        if after is single:
            assert (data["both"], data["changed"]) == (399, pytest.approx(data["changed"]))
            assert [gate.name for gate in verdicts] == ["min_skill", "max_failed", "max_gone", "max_psi"]
            continue
        compared = ["paid", SIZE, "total"] if before is release else ["total"] if before else []
        assert [label for label, each in data["labels"].items() if each["both"]] == compared
        assert {each["after"]["failed"] for each in data["labels"].values()} == {1}
        texts = [gate.text.partition(": ")[0] for gate in verdicts if gate.name == "max_psi"]
        assert texts == (["paid", "size:%", "total"] if before is release else compared)
        page, pictures = render("orders", "", Known("loaded", None, None), manifest, data)
        assert page.count("<h2>Predictions") == 3
        assert len({picture.name for picture in pictures}) == len(pictures)
        row = listed(after.release, Pointer(), Known("loaded", manifest, None), 0)
        assert row.model == ", ".join(model.sha256[:8] for model in after.models.each)


def test_a_gate_that_fails_names_its_label(release):
    limits = load_settings(Path(release.path).parents[2] / "predictions.toml").gates
    data = json.loads(to_json(compare_releases(release, release, 1, lambda _share: None), "x", release.release))
    data["labels"][SIZE]["after"]["failed"] = 300
    data["labels"]["paid"]["stability"] = 3.0
    failed = [
        (gate.name, gate.text.partition(": ")[0])
        for gate in gates(limits, manifest_of(release), data)
        if not gate.passed
    ]
    assert sorted(failed) == [("max_failed", SIZE), ("max_psi", "paid")]


def test_a_label_that_failed_alone_counts_as_failed_in_its_comparison():
    columns = models_of(x={}, y={}).columns
    labels = [Compared(Bins((), (1.0, 2.0)), name, place_of(columns, name), place_of(columns, name)) for name in "xy"]
    line = b"%b\t1.5\t\\N\t\\N\t%b\t\\N\t%b\tf\t1\t%b\n"
    before = line % (b"0000:1", b"1", b"\\N", b"\\N") + line % (b"0001:2", b"2", b"\\N", b"\\N")
    after = line % (b"0000:1", b"\\N", b"not finite", b"\\N") + line % (b"0001:2", b"3", b"\\N", b"\\N")
    x, y = compare([before], [after], labels).each
    assert (x.after.failures, x.both, x.changed) == ({}, 2, 0)
    assert (y.after.failures, y.both, y.changed) == ({b"not finite": 1}, 1, 1)


def test_lines_are_kept_only_if_the_models_write_the_same():
    models = models_of(x={}, y={})
    x, y = (model.manifest for model in models._models.values())
    release = ReleaseModels([x, y])
    assert release.write_the_same_as(ReleaseModels([replace(x, training=Training(seconds=7)), y]))
    for other in (
        [replace(x, sha256="0"), y],
        [replace(x, threshold=0.3), y],
        [replace(x, positive=0), y],
        [replace(x, values=["low"]), y],
        [replace(x, top=3), y],
        [replace(x, classes=["no", "yes"]), y],
        [replace(x, schema=[FeatureType("amount", "float32")]), y],
        [replace(x, packages=[Package("own-1.1-py3-none-any.whl", "1")]), y],
        [y, x],
        [x],
    ):
        assert not release.write_the_same_as(ReleaseModels(other))


def test_lines_are_carried_over_and_compared_in_one_pass(release, tmp_path):
    """The reducers of a job with --changed compare every label."""
    first, parts = lines_of(release), release.files("scored")
    points = release.scored.split_points
    current = Current.of(release.release, compared_labels(release, release), points, parts, [], COLUMNS)
    (tmp_path / "current.json").write_bytes(to_file(current))
    model = f"{release.path}/model/model.json"
    records = b"".join(Path(path).read_bytes() for path in release.files("export"))
    unscored = script(mapper.main, model, release.release, "--unscored", stdin=records).stdout
    options = ["--hfiles", tmp_path, "--current", tmp_path / "current.json", "--score", model, release.release]
    ended = script(reducer.main, *options, stdin=b"".join(sorted(unscored.splitlines(keepends=True))))
    assert ended.stdout == b"".join(line.join() + b"\n" for line in first.values()), ended.stderr
    state = json.loads((tmp_path / "part-00000.comparison.json").read_bytes())
    assert [(label["both"], label["changed"], label["gone"]) for label in state] == [(399, 0, 0)] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({'label = "total"': 'label = "paid"'}, "several tables have the label paid"),
        ({'label = "total"': 'label = "items"'}, "model.2: features: 'items' is the label"),
        (
            {'label = "total"': 'label = "total"\nfeatures = ["items"]'},
            r"model\.2\.features: all labels are predicted from",
        ),
        (
            {'label = "total"': 'lable = "total"'},
            "model.2.label: missing; model.2.lable: no such key; did you mean 'label'",
        ),
    ],
)
def test_wrong_tables_are_named(tmp_path, changes, message):
    text = SETTINGS
    for old, new in changes.items():
        text = text.replace(old, new)
    (tmp_path / "predictions.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_settings(tmp_path / "predictions.toml")


def test_variables_of_one_model_are_refused_by_several(tmp_path, monkeypatch):
    path = tmp_path / "predictions.toml"
    path.write_text(SETTINGS)
    assert [model.features for model in load_settings(path).models] == [["country", "amount", "items"]] * 3
    monkeypatch.setenv("PREDICTIONS_MODEL_LABEL", "paid")
    with pytest.raises(InputError, match=r"PREDICTIONS_MODEL_LABEL: cannot say which table \[\[model\]\]"):
        load_settings(path)


def test_a_table_in_double_brackets_may_be_the_only_one(orders):
    path = one_label(orders, "paid")
    path.write_text(path.read_text().replace("[model]", "[[model]]"))
    settings = load_settings(path)
    assert [model.label for model in settings.models] == ["paid"]


def test_an_error_of_training_names_the_label(orders, tmp_path):
    folder = make_orders(tmp_path)
    (folder / "predictions.toml").write_text(SETTINGS.replace("HistGradientBoostingRegressor", "NoSuchRegressor"))
    assert call(["export"], folder).returncode == 0
    ended = call(["train"], folder)
    assert (ended.returncode, "predictions: total: model.estimator: sklearn" in ended.stderr) == (2, True), ended.stderr
    (folder / "predictions.toml").write_text(one_label(orders, "paid").read_text())
    ended = call(["train"], folder)
    assert ended.returncode == 2
    assert (
        "and the labels paid (integer), size:% (text), total (real), but the settings have other labels" in ended.stderr
    )


def test_a_release_of_several_labels_is_read_back(release):
    manifest = manifest_of(release)
    document = json.loads(Path(release.path, "manifest.json").read_text())
    assert document.keys() & {"label", "model", "task"} == set()
    assert [label["name"] for label in document["labels"]] == ["paid", SIZE, "total"]
    assert [each.name for each in manifest.predicted] == ["paid", SIZE, "total"]
    assert replace(manifest, models=None).predicted == []
    with pytest.raises(InputError, match="has models for paid, size:%, total, not for one label"):
        _ = release.model
