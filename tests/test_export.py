"""The export: all records of a snapshot in parts, and the manifest's counts."""

import sqlite3
from contextlib import closing

import pytest
from conftest import manifest_of

from predictions.errors import InputError
from predictions.formats.id_digest import IdDigest
from predictions.formats.record_line import Column, split_columns
from predictions.settings import load_settings
from predictions.stages.export import export
from predictions.storage import Storage


@pytest.fixture
def settings(orders):
    return load_settings(orders / "predictions.toml")


@pytest.fixture
def storage(settings):
    return Storage(settings.hadoop.storage, settings.name)


def quiet(*_arguments):
    pass


def test_every_record_is_exported_with_its_features_and_label(settings, storage, orders):
    calls = []
    folder = export(settings, storage, lambda done, total: calls.append((done, total)), quiet)
    [part] = folder.files("export")
    data = b"".join(folder.blocks(part))
    ids, countries, _amounts, _items, labels = split_columns(data, 5)
    assert len(ids) == 400
    assert ids[5] == b"order-005"
    assert set(countries) == {b"AT", b"CH", "Côte d'Ivoire".encode(), rb"tab\there", b"\\N"}
    manifest = manifest_of(folder)
    assert manifest.export.rows == 400
    assert manifest.export.labelled == sum(label != b"\\N" for label in labels) == 376
    assert manifest.export.id_digest == IdDigest.of(ids)
    assert manifest.export.unfit_ids == 0
    assert manifest.features == [Column("country", "text"), Column("amount", "real"), Column("items", "integer")]
    assert calls == [(400, 400)]
    assert b"password" not in folder.read("manifest.json")
    assert "url" not in manifest.source


def test_large_exports_are_cut_into_parts(settings, storage, monkeypatch):
    monkeypatch.setattr("predictions.stages.export.PART_BYTES", 4000)
    monkeypatch.setattr("predictions.sources.sqlite.FETCH_ROWS", 50)
    folder = export(settings, storage, quiet, quiet)
    parts = folder.files("export")
    assert len(parts) > 2
    lines = [line for part in parts for line in b"".join(folder.blocks(part)).splitlines()]
    assert len(lines) == len(set(lines)) == 400


def test_a_failed_export_leaves_nothing_behind(settings, storage, orders):
    with closing(sqlite3.connect(orders / "orders.db")) as connection, connection:
        connection.execute("INSERT INTO orders (country) VALUES ('AT')")
    with pytest.raises(InputError, match="id is NULL in 1 rows"):
        export(settings, storage, quiet, quiet)

    def interrupt(_done, _total):
        raise KeyboardInterrupt

    with closing(sqlite3.connect(orders / "orders.db")) as connection, connection:
        connection.execute("DELETE FROM orders WHERE id IS NULL")
    with pytest.raises(KeyboardInterrupt):
        export(settings, storage, interrupt, quiet)
    assert list((orders / "storage" / "orders").iterdir()) == []
    assert storage.releases() == []


def test_ids_that_can_be_no_row_keys_are_exported_and_counted(settings, storage, orders, monkeypatch):
    monkeypatch.setattr("predictions.sources.sqlite.FETCH_ROWS", 50)  # they are in different blocks
    unfit = ["", "x" * 32763, b"\xff"]
    with closing(sqlite3.connect(orders / "orders.db")) as connection, connection:
        for number, record_id in enumerate([*unfit, "tab\there", "\\N", "é"]):
            connection.execute("DELETE FROM orders WHERE rowid = ?", (60 * number + 1,))
            connection.execute(
                "INSERT INTO orders (rowid, id) VALUES (?, CAST(? AS TEXT))", (60 * number + 1, record_id)
            )
    folder = export(settings, storage, quiet, quiet)
    exported = manifest_of(folder).export
    assert (exported.rows, exported.unfit_ids) == (400, 3)
    [part] = folder.files("export")
    ids = split_columns(b"".join(folder.blocks(part)), 5)[0]
    assert {b"", b"x" * 32763, b"\xff", b"tab\\there", b"\\\\N", "é".encode()} < set(ids)
    assert exported.id_digest == IdDigest.of(ids)


def test_two_exports_are_two_releases(settings, storage):
    releases = [export(settings, storage, quiet, quiet).release for _turn in range(2)]
    assert storage.releases() == releases
    assert storage.release().release == releases[1]


def test_an_empty_table_is_refused(settings, storage, orders):
    with closing(sqlite3.connect(orders / "orders.db")) as connection, connection:
        connection.execute("DELETE FROM orders")
    with pytest.raises(InputError, match="orders: no records"):
        export(settings, storage, quiet, quiet)
