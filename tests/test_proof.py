"""The completeness proof, from a manifest alone."""

import copy
import re

import pytest

from predictions.formats.proof import accounts, faults

MANIFEST = {
    "export": {"rows": 10, "id_digest": "00000000000000ff"},
    "scored": {
        **{"scored": 7, "failed": 2, "duplicates": 1, "unreadable": 0, "rows": 9},
        **{"id_digest": "fffffffffffffff0", "duplicates_digest": "000000000000010f"},
    },
    "loaded": {"parts": [{"rows": 4, "id_digest": "8000000000000000"}, {"rows": 5, "id_digest": "7ffffffffffffff0"}]},
}


def test_what_adds_up_has_no_faults():
    assert list(faults(MANIFEST)) == []
    assert [account.rows for account in accounts(MANIFEST)] == [10, 10, 9, 9]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("export", "rows"), 11, "11 exported .* but 10 scored, failed, duplicate or unreadable"),
        (("export", "id_digest"), "1", r"10 exported \(ID digest 0000000000000001\), but 10 scored, failed"),
        (("scored", "failed"), 3, "10 exported .* but 11 scored"),
        (("scored", "duplicates_digest"), "0", "10 exported .* but 10 scored, failed"),
        (("loaded", "parts", 0, "rows"), 3, "9 scored or failed .* but 8 loaded"),
        (("loaded", "parts", 1, "id_digest"), "1", "9 scored or failed .* but 9 loaded"),
    ],
)
def test_where_two_sides_part_is_said(path, value, message):
    manifest = copy.deepcopy(MANIFEST)
    place = manifest
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    [fault] = faults(manifest)
    assert re.search(message, fault)
