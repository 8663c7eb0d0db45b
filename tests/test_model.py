import json
import shutil

import pytest
import skops.io
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import FunctionTransformer

from predictions import model as model_module
from predictions.errors import InputError
from predictions.model import load_model, sha256


@pytest.fixture
def saved(trained, tmp_path):
    """A copy of a trained model's folder."""
    return shutil.copytree(trained / "model", tmp_path / "model")


def change(saved, **changes):
    path = saved / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_a_model_comes_back(saved):
    model = load_model(saved / "model.json")
    assert [column.name for column in model.features] == ["country", "amount", "items"]
    assert len(model.manifest["golden"]) == 5


def test_another_file_is_refused_before_it_is_opened(saved):
    (saved / "model.skops").write_bytes(b"PK\x03\x04 anything")
    with pytest.raises(InputError, match="sha256 is .* was changed or replaced"):
        load_model(saved / "model.json")


def test_another_scikit_learn_is_refused(saved):
    versions = json.loads((saved / "model.json").read_text())["versions"]
    with pytest.raises(InputError, match=r"trained with scikit-learn 1\.0\.0, this Python has .*install"):
        load_model(change(saved, versions=versions | {"scikit-learn": "1.0.0"}))


def test_other_answers_to_the_golden_records_are_refused(saved):
    golden = json.loads((saved / "model.json").read_text())["golden"]
    golden[2]["probability"] = "0.9999"
    with pytest.raises(InputError, match="does not answer as it did"):
        load_model(change(saved, golden=golden))


def test_types_that_were_not_reviewed_are_refused(saved):
    path = saved / "model.skops"
    skops.io.dump(FunctionTransformer(print), path)
    with pytest.raises(InputError, match=r"not reviewed: .*print"):
        load_model(change(saved, sha256=sha256(path)))


def test_every_trusted_type_exists_and_none_is_a_function():
    for name in model_module.TRUSTED:
        module, _dot, attribute = name.rpartition(".")
        found = getattr(__import__(module, fromlist=[attribute]), attribute)
        assert isinstance(found, type), name


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not a model's manifest"), ('{"format": 99}', "format 99, this version reads")]
)
def test_a_manifest_that_cannot_be_read_is_named(saved, text, message):
    (saved / "model.json").write_text(text)
    with pytest.raises(InputError, match=message):
        load_model(saved / "model.json")


def test_a_missing_model_is_named(saved, tmp_path):
    with pytest.raises(InputError, match="predictions train"):
        load_model(tmp_path / "model.json")
    (saved / "model.skops").unlink()
    with pytest.raises(InputError, match="No such file"):
        load_model(saved / "model.json")


def test_an_estimator_that_skops_cannot_save_is_refused(saved, tmp_path):
    model = load_model(saved / "model.json")
    model.estimator = LinearRegression()
    model.estimator.extra = lambda: None
    with pytest.raises(InputError, match="not reviewed|cannot be saved"):
        model_module.save_model(model, tmp_path)
