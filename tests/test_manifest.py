"""Manifests written and read back, and the completeness proof, which needs only a manifest."""

import json
import re
from dataclasses import replace

import pytest
from conftest import make_manifest

from predictions.errors import InputError
from predictions.formats.document import read, to_cell, to_file
from predictions.formats.id_digest import IdDigest
from predictions.formats.manifest import (
    Export,
    Loaded,
    Manifest,
    ModelFacts,
    ModelManifest,
    Part,
    Scored,
    Training,
    mismatches,
)
from predictions.formats.record_line import Column

SCORED = Scored(
    read=10,
    scored=7,
    failed=2,
    duplicates=1,
    rows=9,
    id_digest=IdDigest.parse("fffffffffffffff0"),
    duplicates_digest=IdDigest.parse("000000000000010f"),
    split_points=["8000"],
)
FIRST, SECOND = Part(4, IdDigest.parse("8000000000000000")), Part(5, IdDigest.parse("7ffffffffffffff0"))
MANIFEST = make_manifest(
    export=Export(rows=10, id_digest=IdDigest.parse("00000000000000ff")),
    model=ModelFacts("an.Estimator", "ab" * 32, {"numpy": "2.4.0"}, Training(quantiles=[1.0], metrics={"rmse": 0.5})),
    task="regression",
    scored=SCORED,
    loaded=Loaded(9, 1.5, [FIRST, SECOND]),
)
MODEL = ModelManifest(
    sha256="ab" * 32,
    features=[Column("country", "text")],
    label=Column("paid", "integer"),
    classes=[0, 1],
    golden=[{"record": "1\tAT\t0", "prediction": "0", "probability": "0.75"}],
)


def test_accounts_that_agree_have_no_mismatches():
    assert list(mismatches(MANIFEST.accounts)) == []
    assert [account.rows for account in MANIFEST.accounts] == [10, 10, 9, 9]


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("export", {"rows": 11}, "11 exported .* but 10 scored, failed, duplicate or unreadable"),
        ("export", {"id_digest": IdDigest(1)}, r"10 exported \(ID digest 0000000000000001\), but 10 scored, failed"),
        ("scored", {"failed": 3}, "10 exported .* but 11 scored"),
        ("scored", {"duplicates_digest": IdDigest()}, "10 exported .* but 10 scored, failed"),
        ("loaded", {"parts": [replace(FIRST, rows=3), SECOND]}, "9 scored or failed .* but 8 loaded"),
        ("loaded", {"parts": [FIRST, replace(SECOND, id_digest=IdDigest(1))]}, "9 scored or failed .* but 9 loaded"),
    ],
)
def test_a_mismatch_names_both_accounts(part, values, message):
    [mismatch] = mismatches(replace(MANIFEST, **{part: replace(getattr(MANIFEST, part), **values)}).accounts)
    assert re.search(message, mismatch)


@pytest.mark.parametrize("manifest", [MANIFEST, make_manifest(), MODEL])
def test_a_written_manifest_is_read_back(manifest):
    assert read(type(manifest), to_file(getattr(manifest, "done", manifest)), "x") == manifest


def test_digests_are_hex_and_stages_that_have_not_run_are_left_out():
    values = json.loads(to_cell(MANIFEST.done))
    assert values["scored"]["id_digest"] == "fffffffffffffff0"
    assert values["loaded"]["parts"][1] == {"rows": 5, "id_digest": "7ffffffffffffff0"}
    assert json.loads(to_cell(make_manifest().done)).keys() == values.keys() - {"model", "task", "scored", "loaded"}
    assert list(values)[:4] == ["format", "name", "release", "source"]


def test_an_older_manifest_lacks_some_keys_and_a_newer_one_has_others():
    values = json.loads(to_cell(MANIFEST.done)) | {"later": 1}
    del values["scored"]["carried"]
    values["scored"]["more"] = 2
    assert read(Manifest, json.dumps(values).encode(), "x") == MANIFEST


@pytest.mark.parametrize("kind", [Manifest, ModelManifest])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "x: not the expected JSON"),
        (b"[]", "x: not the expected JSON"),
        (b'{"format": 1}', "x: not the expected JSON"),
        (b'{"format": 2}', "x: has format 2, but this"),
    ],
)
def test_an_invalid_manifest_is_refused(kind, data, message):
    with pytest.raises(InputError, match=message):
        read(kind, data, "x")
