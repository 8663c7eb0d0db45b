"""Own code: wheels travel with the model to every process that loads it, and estimators may be one's own."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import skops.io
from conftest import CHECKOUT
from inprocess import call
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from test_fitted_models import make_accounts, predicted, read_accounts, scored, train
from wheels import LOG_RATIO, make_wheel

from predictions.errors import InputError
from predictions.jobs.wheels import check_wheels
from predictions.lookup.online import Scorer
from predictions.scoring.files import load_model
from predictions.scoring.packages import install
from predictions.settings import load_settings
from predictions.storage import Storage

OWN = 'packages = ["my_features-1.2-py3-none-any.whl"]\ntrusted = ["my_features.LogRatio"]\n'


@pytest.fixture(scope="module")
def accounts(tmp_path_factory):
    return make_accounts(tmp_path_factory.mktemp("accounts"))


@pytest.fixture(autouse=True)
def path():
    """Forget what a test has installed."""
    before = list(sys.path)
    yield
    sys.path[:] = before
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_features"]:
        del sys.modules[name]


def fit(folder, frame, version="1.2", code=LOG_RATIO):
    """Fit a pipeline with a transformer of a wheel, save it, and return it and the wheel."""
    wheel = make_wheel(folder, version=version, **{"__init__.py": code, "offset.txt": "1.0"})
    install(check_wheels([wheel]))
    from my_features import LogRatio

    model = make_pipeline(LogRatio(), LogisticRegression())
    known = frame.dropna(subset=["churned", "visits", "spent"])
    skops.io.dump(model.fit(known[["visits", "spent"]], known.churned), folder / "model.skops")
    return model, wheel


@pytest.fixture
def frame(accounts):
    return read_accounts(accounts)


def test_a_transformer_of_a_wheel_goes_with_the_model(accounts, frame):
    """To the trial in a new process, to the scripts, and to lookups."""
    model, wheel = fit(accounts, frame)
    settings = f'from = "file:model.skops"\n{OWN}[gates]\nmax_failed = 1'
    found, _said, release = scored(accounts, ["visits", "spent"], processes=True, model=settings)
    complete = frame.dropna(subset=["visits", "spent"])
    assert predicted(model, complete[["visits", "spent"]], complete.id).items() <= found.items()
    assert release.read(f"model/{wheel.name}") == wheel.read_bytes()
    assert set(release.model.task_files) == {"model.json", "model.skops", wheel.name}
    served = SimpleNamespace(release=release.release, model=release.model.sha256)
    settings = load_settings(accounts / "predictions.toml")
    online = Scorer(settings.hadoop.storage, settings.name)._read(served)
    line = next(line for line in next(release.blocks(release.files("export")[0])).splitlines() if b"\\N" not in line)
    scores = online.score(line + b"\n")
    record_id = line.partition(b"\t")[0].decode()
    assert (scores.predictions[0].decode(), scores.probabilities[0].decode()) == found[record_id][:2]


def test_two_versions_of_a_wheel_are_two_models(accounts, frame, tmp_path):
    """A process that answers lookups loads the models of several releases."""
    models, lines = [], b"1\t7\t100.5\t\\N\n"
    for version, code in (("1.2", LOG_RATIO), ("1.3", LOG_RATIO.replace("np.log(ratio", "-np.log(ratio"))):
        fit(accounts, frame, version, code)
        result, release = train(
            accounts, features=["visits", "spent"], model='from = "file:model.skops"\n' + OWN.replace("1.2", version)
        )
        assert result.returncode == 0, result.stderr
        shutil.copytree(Path(release.path) / "model", tmp_path / version)
        models.append(load_model(tmp_path / version / "model.json"))
        shutil.rmtree(tmp_path / version)  # a lookup removes its copy as well
    frames = [
        np.asarray(each.predictor.estimator[0].transform(pd.DataFrame({"visits": [7.0], "spent": [100.5]})))
        for each in models
    ]
    assert frames[0] == -frames[1]
    assert models[0].score(lines) == models[1].score(lines)  # the second was fitted on the negative


def test_what_own_code_prints_is_no_line(accounts, frame):
    fit(accounts, frame, code=LOG_RATIO.replace("        ratio =", '        print("a note")\n        ratio ='))
    _result, release = train(accounts, features=["visits", "spent"], model=f'from = "file:model.skops"\n{OWN}')
    manifest = f"{release.path}/model/model.json"
    command = [sys.executable, CHECKOUT / "mapper.py", manifest, release.release]
    ran = subprocess.run(command, input=b"1\t7\t100.5\t\\N\n", capture_output=True, check=True)
    assert [line.count(b"\t") for line in ran.stdout.splitlines()] == [5]
    assert b"a note\n" in ran.stderr


def test_a_changed_wheel_is_refused(accounts, frame, tmp_path):
    _model, wheel = fit(accounts, frame)
    _result, release = train(accounts, features=["visits", "spent"], model=f'from = "file:model.skops"\n{OWN}')
    copy = shutil.copytree(Path(release.path) / "model", tmp_path / "model")
    with open(copy / wheel.name, "ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=r"my_features-1\.2-py3-none-any\.whl: its sha256 is .* changed or replaced"):
        load_model(copy / "model.json")


def test_a_model_without_its_wheel_says_so(accounts, frame):
    fit(accounts, frame)
    path_without = [entry for entry in sys.path if "predictions-package" not in entry]
    sys.path[:] = path_without
    del sys.modules["my_features"]
    settings = 'from = "file:model.skops"\ntrusted = ["my_features.LogRatio"]'
    result, _release = train(accounts, features=["visits", "spent"], model=settings)
    assert result.returncode == 2
    assert "No module named 'my_features'; give its code as a wheel with model.packages" in result.stderr


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ({"tags": "cp311-cp311-linux_x86_64"}, {}, "compiled code.*packed environment.*predictions pack"),
        ({}, {"__init__.py": "", "fast.so": ""}, "compiled code"),
        ({"name": "predictions"}, {"__init__.py": ""}, "called predictions"),
    ],
)
def test_a_wheel_that_cannot_travel_is_refused(tmp_path, name, files, message):
    with pytest.raises(InputError, match=message):
        check_wheels([make_wheel(tmp_path, **name, **files)])


def test_other_files_are_no_wheels(tmp_path):
    with pytest.raises(InputError, match="features.zip: not the name of a wheel"):
        check_wheels([tmp_path / "features.zip"])
    (tmp_path / "a-1-py3-none-any.whl").write_text("no archive")
    with pytest.raises(InputError, match="not a wheel: File is not a zip file"):
        check_wheels([tmp_path / "a-1-py3-none-any.whl"])
    with pytest.raises(InputError, match="No such file.*pip wheel"):
        check_wheels([tmp_path / "b-1-py3-none-any.whl"])


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("make_pipeline_of_ratio", ["columntransformer", "simpleimputer", "randomforestclassifier"]),
        ("make_forest", ["columns", "estimator"]),
    ],
)
def test_an_estimator_may_be_made_by_own_code(orders, name, steps):
    make_wheel(orders)
    settings = orders / "predictions.toml"
    settings.write_text(
        settings.read_text().replace(
            "params = { max_iter = 10 }", f'{OWN}estimator = "my_features.models.{name}"\nparams = {{ trees = 3 }}'
        )
    )
    digests = set()
    for _turn in range(2):
        for stage in ("export", "train", "score --runner local"):
            result = call(stage.split(), orders)
            assert result.returncode == 0, result.stderr
        loaded = load_settings(settings)
        release = Storage(loaded.hadoop.storage, loaded.name).release()
        digests.add(release.model.sha256)
    # A pipeline is used as it is, and its seed is set: the same records give the same model.
    assert len(digests) == 1
    model = load_model(Path(release.path) / "model" / "model.json")
    assert [step for step, _transformer in model.predictor.estimator.steps] == steps
    assert model.predictor.estimator.steps[-1][1].n_estimators == 3


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        ("my_features.models.nothing", "has no attribute 'nothing'"),
        ("my_features.LogRatio", "neither a classifier nor a regressor"),
        ("os.getcwd", "neither a classifier nor a regressor"),
    ],
)
def test_what_makes_no_estimator_is_named(orders, estimator, message):
    make_wheel(orders)
    settings = orders / "predictions.toml"
    settings.write_text(settings.read_text().replace("params = { max_iter = 10 }", f'{OWN}estimator = "{estimator}"'))
    assert call(["export"], orders).returncode == 0
    result = call(["train"], orders)
    assert result.returncode == 2
    assert message in result.stderr


def test_each_release_has_a_model_of_its_own_at_lookups(tmp_path, monkeypatch):
    """With the same file, another release may have other code or another threshold."""
    online = Scorer(str(tmp_path), "accounts")
    monkeypatch.setattr(online, "_read", lambda served: served.release)
    releases = [SimpleNamespace(release=name, model="the same") for name in ("first", "second", "first")]
    assert [online._loading(served).wait() for served in releases] == ["first", "second", "first"]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("predictions.py", "called predictions"),
        ("numpy/__init__.py", "called numpy"),
        ("json.py", "called json"),
        ("sitecustomize.py", "called sitecustomize"),
        ("/predictions/__init__.py", "outside its folder"),
        ("../predictions/__init__.py", "outside its folder"),
        (".", "outside its folder"),
    ],
)
def test_a_wheel_that_would_replace_other_code_is_refused(tmp_path, file, message):
    with zipfile.ZipFile(tmp_path / "own-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(file, "")
    with pytest.raises(InputError, match=message):
        check_wheels([tmp_path / "own-1.0-py3-none-any.whl"])
