"""Models of all kinds on the live cluster (--full): each lookup of each record says what one process predicts.

A case prepares each of its runs, writes the settings, and yields a function. This function returns what is expected of
a release, from the database and the model file alone: by record ID and label (empty if there is only one) the fields of
an answer, with numbers in 7 significant digits.
"""

import json
import sqlite3
import subprocess
from contextlib import closing
from decimal import ROUND_HALF_UP, Decimal

import pandas as pd
import pytest
import skops.io
from conftest import make_orders
from mlflow_server import LOG, mlflow_python
from services import service
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from test_fitted_models import (
    ROWS,
    boosted_categories,
    boosted_categories_of_xgboost,
    make_accounts,
    read_accounts,
    write_settings,
)
from test_labels import QUERY, SIZE
from test_labels import SETTINGS as THREE_LABELS
from test_own_code import OWN, path
from test_page import browser
from wheels import make_wheel

from predictions.jobs.wheels import check_wheels
from predictions.lookup.client import Client
from predictions.scoring.estimator import TRUSTED
from predictions.scoring.packages import install

pytestmark = pytest.mark.cluster
__all__ = ["browser", "mlflow_python", "path"]

SHELVES = """query = "SELECT *, 'shelf ' || (visits / 5) || ': 50 %' AS shelf FROM accounts\""""
FIELDS = "prediction", "probability", "probabilities"
# Look records up one after the other, by the page's own code, and return what it shows.
SHOWN = """async (ids) => {
    const shown = {};
    for (const id of ids) {
        location.hash = encodeURIComponent(id);
        while (document.querySelector("#answer-id").textContent !== id) await new Promise((done) => setTimeout(done, 2));
        const part = document.querySelector("#prediction");
        shown[id] = [
            [...part.querySelectorAll("p")].map((node) => node.textContent),
            [...part.querySelectorAll("meter")].map((node) => [node.getAttribute("aria-label"), node.value]),
        ];
    }
    return shown;
}"""


@pytest.fixture(scope="module", autouse=True)
def only_with_full(full):
    """Skip the tests before a browser is started for them."""
    if not full:
        pytest.skip("with --full only")


def seven(number):
    return float(f"{number:.7g}")


def says(model, frame, threshold=None, is_all=False):
    """Return what a model of scikit-learn's interface says of each row of a frame."""
    if not hasattr(model, "predict_proba"):
        return [{"prediction": seven(value)} for value in model.predict(frame)]
    said, shares = [], model.predict_proba(frame).astype(float)
    classes = [int(label) if isinstance(label, float) else label for label in model.classes_.tolist()]
    best = shares.argmax(axis=1) if threshold is None else (shares[:, 1] >= threshold).astype(int)
    for row, index in zip(shares, best.tolist(), strict=True):
        every = {"probabilities": {str(label): seven(share) for label, share in zip(classes, row, strict=True)}}
        said.append({"prediction": classes[index], "probability": seven(row[index]), **(every if is_all else {})})
    return said


def by_account(accounts, said):
    return {str(name): {"": each} for name, each in zip(accounts.id, said, strict=True)}


def trained(release, folder, name="model.skops"):
    """Return a model of a release, read by skops alone."""
    (folder / "trained.skops").write_bytes(release.read(f"model/{name}"))
    return skops.io.load(folder / "trained.skops", trusted=TRUSTED)


def own_pipeline(folder, _request):
    """A fitted pipeline with a transformer of a wheel."""
    make_accounts(folder)
    install(check_wheels([make_wheel(folder)]))
    from my_features import LogRatio

    frame, columns = read_accounts(folder), ["visits", "spent"]
    known = frame.churned.notna()
    model = make_pipeline(LogRatio(), HistGradientBoostingClassifier(max_iter=10))
    skops.io.dump(model.fit(frame.loc[known, columns], frame.churned[known]), folder / "model.skops")
    write_settings(folder, columns, model=f'from = "file:model.skops"\n{OWN}')

    def expected(_release):
        accounts = read_accounts(folder)
        return by_account(accounts, says(model, accounts[columns]))

    yield expected


def boosted(folder, notebook):
    """A classifier of another library, fitted on pandas' categories; some records have one that it has not seen."""
    frame = read_accounts(make_accounts(folder))
    model, features = notebook(frame)
    known = frame.churned.notna() & (frame.region != "late")
    skops.io.dump(model.fit(features[known], frame.churned[known].astype(int)), folder / "model.skops")
    write_settings(folder, sorted(features))
    yield lambda _release: by_account(frame, says(model, features))


def lightgbm_with_categories(folder, _request):
    return boosted(folder, boosted_categories)


def xgboost_with_categories(folder, _request):
    return boosted(folder, boosted_categories_of_xgboost)


def registry(folder, request):
    """An MLflow registry; its alias moves between two runs."""
    python = request.getfixturevalue("mlflow_python")
    frame = read_accounts(make_accounts(folder))
    write_settings(folder, ["visits", "spent"], model='from = "models:/churn@champion"')
    for depth in (2, 3):
        saved = folder / f"{depth}.skops"
        subprocess.run([python, "-c", LOG, folder / "accounts.db", str(depth), saved], check=True)

        def expected(release, saved=saved, version=str(depth - 1)):
            assert release.model.origin_version == version
            return by_account(frame, says(skops.io.load(saved, trusted=TRUSTED), frame[["spent", "visits"]]))

        yield expected


def ten_classes(folder, _request):
    """Ten classes, whose names need escapes, with all probabilities; trained by the run."""
    frame, columns = read_accounts(make_accounts(folder)), ["visits", "spent", "region"]
    write_settings(folder, columns, label="shelf", model='outputs = ["probabilities"]\nparams = { max_iter = 10 }')
    settings = folder / "predictions.toml"
    settings.write_text(settings.read_text().replace('table = "accounts"', SHELVES))

    def expected(release):
        model = trained(release, folder)
        assert len(model.classes_) == 10
        return by_account(frame, says(model, frame[columns], is_all=True))

    yield expected


def three_labels(folder, _request):
    """Two classifiers, one with a threshold and all probabilities, and a regressor; trained by the run."""
    (make_orders(folder) / "predictions.toml").write_text(THREE_LABELS)

    def expected(release):
        with closing(sqlite3.connect(folder / "orders.db")) as connection:
            frame = pd.read_sql(QUERY, connection, index_col="id")[["country", "amount", "items"]]
        paid, size, total = (trained(release, folder, f"{number}-model.skops") for number in range(3))
        said = zip(says(paid, frame, 0.4, True), says(size, frame), says(total, frame), strict=True)
        return {
            name: dict(zip(("paid", SIZE, "total"), each, strict=True))
            for name, each in zip(frame.index, said, strict=True)
        }

    yield expected


CASES = own_pipeline, lightgbm_with_categories, xgboost_with_categories, registry, ten_classes, three_labels


def make(project, folder):
    """Return a project on YARN with the settings that a case has written."""
    return project((folder / "predictions.toml").read_text().partition("[hbase]")[0], folder, yarn=True)


def said(answer):
    """Return what is said of each label."""
    assert answer["status"] == "fresh"
    labels = answer.get("labels") or {"": answer}
    return {label: {field: part[field] for field in FIELDS if field in part} for label, part in labels.items()}


def as_shown(parts):
    """Return the page's lines of text, and the bars of each label, the most probable class first."""
    texts, bars = [], []
    for label, part in parts.items():
        details = [label] * bool(label)
        if "probability" in part:
            share = Decimal(part["probability"]).quantize(Decimal("0.001"), ROUND_HALF_UP)
            details.append(f"with probability {share}")
        texts.append(f"{part['prediction']} {', '.join(details)}")
        shares = sorted(part.get("probabilities", {}).items(), key=lambda item: -item[1])
        bars += [[f"probability of {name}", share] for name, share in shares]
    return [texts, bars]


def compare(made, browser, expected):
    """Look each record up in each way, and compare what is said of it."""
    with Client(made.settings) as client:
        answers = [json.loads(json.dumps(answer.as_json())) for answer in client.get_many(expected)]
    assert {answer["id"]: said(answer) for answer in answers} == expected
    with service(made.path, made.path.parent) as running:
        assert {answer["id"]: said(answer) for answer in running.post(list(expected)).json()["answers"]} == expected
        page = browser.new_page()
        page.goto(running.url)
        shown = page.evaluate(SHOWN, list(expected))
        page.close()
    assert shown == {name: as_shown(parts) for name, parts in expected.items()}


@pytest.mark.parametrize("case", CASES)
def test_each_lookup_says_what_one_process_predicts(case, project, browser, tmp_path, request):
    made = None
    for expected in case(tmp_path, request):
        made = made or make(project, tmp_path)
        made.succeed("run", processes=True)
        records = expected(made.storage.release())
        assert len(records) == ROWS
        compare(made, browser, records)
        made.succeed("verify", "--full")


def test_only_what_has_changed_is_scored_with_a_wheel(project, browser, tmp_path, request):
    """A fitted model and its wheel reach the reducers too, and a lookup that scores."""
    [expected] = own_pipeline(tmp_path, request)
    made = make(project, tmp_path)
    made.succeed("run", processes=True)
    before = expected(made.storage.release())
    with closing(sqlite3.connect(tmp_path / "accounts.db")) as connection, connection:
        connection.execute("UPDATE accounts SET visits = coalesce(visits, 0) + 60 WHERE id % 20 = 1")
    after = expected(made.storage.release())
    with Client(made.settings, model=True) as client:
        online = {answer.id: said(answer.as_json()) for answer in client.get_many(after) if answer.source}
    assert online == {name: parts for name, parts in after.items() if int(name) % 20 == 1}
    assert before != after
    made.succeed("run", "--changed", processes=True)
    release = made.storage.release()
    assert release.scored.carried == ROWS - len(online) == ROWS * 19 / 20
    compare(made, browser, after)
