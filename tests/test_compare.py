"""`predictions compare`: two releases of one database, from the command line and between any regions."""

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
    """Two releases, the second with another model and in other regions. Not to be changed."""
    for regions, model in (("4", {}), ("3", {"PREDICTIONS_MODEL_PARAMS": '{"max_iter": 50}'})):
        for stage in ("export", "train", "score"):
            done = predictions(stage, PREDICTIONS_HBASE_REGIONS=regions, **model)
            assert done.returncode == 0, done.stderr
    storage = Storage(str(orders / "storage"), "orders")
    return [storage.release(release) for release in storage.releases()]


def scored(folder):
    return [line for path in folder.files("scored") for block in folder.blocks(path) for line in split_lines(block)]


def test_two_releases(predictions, two):
    before, after = two
    found = compare_releases(before, after, 2, lambda _share: None)
    pairs = [(one.split(b"\t"), other.split(b"\t")) for one, other in zip(scored(before), scored(after), strict=True)]
    changed = sum(one[1] != other[1] for one, other in pairs)
    assert 0 < changed < 100
    assert (found.both, found.changed, found.gone, found.appeared) == (400, changed, 0, 0)
    amounts = sorted(abs(_second(one) - _second(other)) for one, other in pairs)[::-1]
    assert [change.amount for change in found.examples] == pytest.approx(amounts[:20])
    printed = predictions("compare", before.release, after.release)
    assert printed.returncode == 0, printed.stderr
    assert f"{changed:,} predictions changed" in printed.stdout
    as_json = json.loads(predictions("compare", "--json", before.release, after.release).stdout)
    assert as_json["examples"] == json.loads(json.dumps(found.as_json()))["examples"]


def _second(fields):
    """The probability of the class 1."""
    return float(fields[2]) if fields[1] == b"1" else 1 - float(fields[2])


def test_the_lines_of_any_range(two):
    before, after = two
    lines = scored(before)
    for folder in two:
        for start, stop in ((b"", b""), (b"", b"4000"), (b"3fff", b"c001"), (b"5555", b"5556"), (b"ffff", b"")):
            expected = [line for line in scored(folder) if line >= start and (not stop or line < stop)]
            assert b"".join(lines_of(folder, start, stop)) == b"".join(line + b"\n" for line in expected)
    assert [line.split(b"\t")[0] for line in lines] == [line.split(b"\t")[0] for line in scored(after)]


def test_what_cannot_be_compared_is_said(predictions, two, orders):
    numbers = {"PREDICTIONS_MODEL_ESTIMATOR": "sklearn.ensemble.HistGradientBoostingRegressor"}
    numbers |= {"PREDICTIONS_MODEL_LABEL": "amount", "PREDICTIONS_MODEL_FEATURES": '["country", "items"]'}
    for stage in ("export", "train"):
        assert predictions(stage, **numbers).returncode == 0
    newest = Storage(str(orders / "storage"), "orders").release()
    refused = predictions("compare", two[0].release, newest.release)
    assert (refused.returncode, "scored: does not exist; `predictions score` makes it" in refused.stderr) == (2, True)
    assert predictions("score", **numbers).returncode == 0
    with pytest.raises(InputError, match="cannot be compared: one has classes, the other numbers"):
        compare_releases(two[0], newest, 1, lambda _share: None)
    same = predictions("compare", newest.release, newest.release)
    assert "0 predictions changed" in same.stdout
