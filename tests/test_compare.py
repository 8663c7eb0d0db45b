"""`predictions compare`: two releases of one database, with the same and with other regions."""

import json

import pytest
from conftest import make_orders
from inprocess import call

from predictions.errors import InputError
from predictions.formats.record_line import split_lines
from predictions.stages.compare import compare_releases, lines_of
from predictions.storage import Storage


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    return make_orders(tmp_path_factory.mktemp("compared"))


@pytest.fixture(scope="module")
def predictions(orders):
    return lambda *arguments, **variables: call(arguments, orders, **variables)


@pytest.fixture(scope="module")
def two(predictions, orders):
    """Two releases, the second one with another model and other regions. Tests must not change them."""
    for regions, model in (("4", {}), ("3", {"PREDICTIONS_MODEL_PARAMS": '{"max_iter": 50}'})):
        for stage in ("export", "train", "score"):
            result = predictions(stage, PREDICTIONS_HBASE_REGIONS=regions, **model)
            assert result.returncode == 0, result.stderr
    storage = Storage(str(orders / "storage"), "orders")
    return [storage.release(release) for release in storage.releases()]


def scored(folder):
    return [line for path in folder.files("scored") for block in folder.blocks(path) for line in split_lines(block)]


def test_two_releases(predictions, two):
    before, after = two
    [comparison] = compare_releases(before, after, 2, lambda _share: None).each
    pairs = [(one.split(b"\t"), other.split(b"\t")) for one, other in zip(scored(before), scored(after), strict=True)]
    changed = sum(one[1] != other[1] for one, other in pairs)
    assert 0 < changed < 100
    assert (comparison.both, comparison.changed, comparison.gone, comparison.appeared) == (400, changed, 0, 0)
    amounts = sorted(abs(_probability_of_1(one) - _probability_of_1(other)) for one, other in pairs)[::-1]
    assert [change.amount for change in comparison.examples] == pytest.approx(amounts[:20])
    printed = predictions("compare", before.release, after.release)
    assert printed.returncode == 0, printed.stderr
    assert f"{changed:,} predictions changed" in printed.stdout
    as_json = json.loads(predictions("compare", "--json", before.release, after.release).stdout)
    assert as_json["examples"] == json.loads(json.dumps(comparison.as_json()))["examples"]


def _probability_of_1(fields):
    """Return the probability of class 1."""
    return float(fields[2]) if fields[1] == b"1" else 1 - float(fields[2])


def test_the_lines_of_any_range(two):
    before, after = two
    lines = scored(before)
    for folder in two:
        for start, stop in ((b"", b""), (b"", b"4000"), (b"3fff", b"c001"), (b"5555", b"5556"), (b"ffff", b"")):
            expected = [line for line in scored(folder) if line >= start and (not stop or line < stop)]
            assert b"".join(lines_of(folder, start, stop)) == b"".join(line + b"\n" for line in expected)
    assert [line.split(b"\t")[0] for line in lines] == [line.split(b"\t")[0] for line in scored(after)]


def test_releases_that_cannot_be_compared_are_refused(predictions, two, orders):
    regression = {"PREDICTIONS_MODEL_ESTIMATOR": "sklearn.ensemble.HistGradientBoostingRegressor"}
    regression |= {"PREDICTIONS_MODEL_LABEL": "amount", "PREDICTIONS_MODEL_FEATURES": '["country", "items"]'}
    for stage in ("export", "train"):
        assert predictions(stage, **regression).returncode == 0
    newest = Storage(str(orders / "storage"), "orders").release()
    refused = predictions("compare", two[0].release, newest.release)
    assert (refused.returncode, "scored: does not exist; `predictions score` makes it" in refused.stderr) == (2, True)
    assert predictions("score", **regression).returncode == 0
    with pytest.raises(InputError, match="cannot be compared: one has classes, the other numbers"):
        compare_releases(two[0], newest, 1, lambda _share: None)
    same = predictions("compare", newest.release, newest.release)
    assert "0 predictions changed" in same.stdout
