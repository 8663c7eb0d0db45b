import json
import sqlite3
from contextlib import closing

import pytest

from predictions.errors import InputError
from predictions.export import export
from predictions.records import id_digest, split_columns
from predictions.settings import load_settings
from predictions.storage import Storage


@pytest.fixture
def settings(orders):
    return load_settings(orders / "predictions.toml")


@pytest.fixture
def storage(settings):
    return Storage(settings.hadoop.storage, settings.name)


def quiet(_done, _total):
    pass


def test_every_record_is_exported_with_its_features_and_label(settings, storage, orders):
    calls = []
    folder = export(settings, storage, lambda done, total: calls.append((done, total)))
    [part] = folder.files("export")
    data = b"".join(folder.blocks(part))
    ids, countries, _amounts, _items, labels = split_columns(data, 5)
    assert len(ids) == 400
    assert ids[5] == b"order-005"
    assert set(countries) == {b"AT", b"CH", "Côte d'Ivoire".encode(), rb"tab\there", b"\\N"}
    manifest = folder.manifest()
    assert manifest["export"]["rows"] == 400
    assert manifest["export"]["labelled"] == sum(label != b"\\N" for label in labels) == 376
    assert manifest["export"]["id_digest"] == f"{id_digest(ids):016x}"
    assert manifest["features"] == [
        {"name": "country", "type": "text"},
        {"name": "amount", "type": "real"},
        {"name": "items", "type": "integer"},
    ]
    assert calls == [(400, 400)]
    assert "password" not in json.dumps(manifest)
    assert "url" not in manifest["source"]


def test_large_exports_are_cut_into_parts(settings, storage, monkeypatch):
    monkeypatch.setattr("predictions.export.PART_BYTES", 4000)
    monkeypatch.setattr("predictions.database.FETCH_ROWS", 50)
    folder = export(settings, storage, quiet)
    parts = folder.files("export")
    assert len(parts) > 2
    lines = [line for part in parts for line in b"".join(folder.blocks(part)).splitlines()]
    assert len(lines) == len(set(lines)) == 400


def test_a_failed_export_leaves_nothing_behind(settings, storage, orders):
    with closing(sqlite3.connect(orders / "orders.db")) as connection, connection:
        connection.execute("INSERT INTO orders (country) VALUES ('AT')")
    with pytest.raises(InputError, match="id is NULL in 1 rows"):
        export(settings, storage, quiet)

    def interrupt(_done, _total):
        raise KeyboardInterrupt

    with closing(sqlite3.connect(orders / "orders.db")) as connection, connection:
        connection.execute("DELETE FROM orders WHERE id IS NULL")
    with pytest.raises(KeyboardInterrupt):
        export(settings, storage, interrupt)
    assert list((orders / "storage" / "orders").iterdir()) == []
    assert storage.releases() == []


@pytest.mark.parametrize(("record_id", "message"), [("", "an ID is empty"), ("x" * 32763, "32,763 bytes long")])
def test_an_id_that_can_be_no_row_key_is_refused(settings, storage, orders, record_id, message):
    with closing(sqlite3.connect(orders / "orders.db")) as connection, connection:
        connection.execute("INSERT INTO orders (id) VALUES (?)", (record_id,))
    with pytest.raises(InputError, match=message):
        export(settings, storage, quiet)
    assert storage.releases() == []


def test_two_exports_are_two_releases(settings, storage):
    releases = [export(settings, storage, quiet).release for _turn in range(2)]
    assert storage.releases() == releases
    assert storage.release().release == releases[1]


def test_an_empty_table_is_refused(settings, storage, orders):
    with closing(sqlite3.connect(orders / "orders.db")) as connection, connection:
        connection.execute("DELETE FROM orders")
    with pytest.raises(InputError, match="orders: no records"):
        export(settings, storage, quiet)
