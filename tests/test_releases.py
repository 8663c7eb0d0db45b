"""Releases on the live cluster: gates, switches and rollbacks, while clients look records up without pause."""

import json
import random
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from conftest import make_orders, manifest_of

from predictions.errors import RefusedError
from predictions.formats.names import release_table
from predictions.formats.prediction_line import PREDICTION, PROBABILITY, cell_column
from predictions.formats.record_line import join_lines, split_lines
from predictions.formats.row_key import row_keys
from predictions.hbase.connection import Connection
from predictions.hbase.releases import DROPPED, LOADED, REFUSED, Releases
from predictions.lookup.client import Client

pytestmark = pytest.mark.cluster

READERS = 8
FOLLOWS = 1.0  # seconds in which every reader follows a switch; in fact far less, even on a busy machine


class Operated:
    """Predictions of the orders, and the operations on their releases."""

    def __init__(self, project):
        self.project = project
        self.name = project.name
        self.database = project.path.parent / "orders.db"
        self.connection = Connection(project.settings.hbase.server(loading=True))
        self.releases = Releases(self.connection, project.name)

    def load(self):
        """Make and load a release, and return its ID."""
        release = self.project.succeed("export").stdout.strip()
        for stage in (["train"], ["score", "--runner", "local"], ["load", "--via", "puts"]):
            self.project.succeed(*stage)
        return release

    def enter(self, folder, state):
        """Enter a release in HBase as loaded, with an empty table; its files may be a copy of another release's."""
        self.connection.create_table(release_table(self.name, folder.release), "p")
        self.releases.finish(folder.release, manifest_of(folder))
        self.releases.judge(folder.release, state, {"gates": []})

    def tables(self):
        """Return the names of the releases' tables."""
        return {name for name in map(bytes.decode, self.connection.tables()) if name.startswith(f"{self.name}.")}

    def rows(self):
        """Return the cells of the releases' rows in HBase, by row key."""
        return {row.key: row.cells for page in self.connection.scan(self.name, b"", b"") for row in page}

    def keep(self):
        """Note the state of HBase, the storage and the database, for `restore`."""
        self._state = self.rows(), self.tables(), self.project.storage.releases(), self.database.read_bytes()

    def restore(self):
        rows, tables, releases, database = self._state
        self.database.write_bytes(database)
        for key in self.rows().keys() - rows.keys():
            self.connection.delete_row(self.name, key)
        for key, cells in rows.items():
            self.connection.put(self.name, key, {column: cell.value for column, cell in cells.items()})
        for table in self.tables() - tables:
            self.connection.delete_table(table)
        for release in set(self.project.storage.names(self.project.storage.folder)) - set(releases):
            self.project.storage.delete(f"{self.project.storage.folder}/{release}")

    def change(self, statement):
        with closing(sqlite3.connect(self.database)) as connection, connection:
            connection.execute(statement)

    def shuffle_labels(self):
        """Give each label to another record, in the same way each time."""
        with closing(sqlite3.connect(self.database)) as connection, connection:
            rows = connection.execute("SELECT paid, id FROM orders WHERE paid IS NOT NULL ORDER BY id").fetchall()
            labels = [paid for paid, _id in rows]
            random.Random(1).shuffle(labels)
            shuffled = [(label, record_id) for label, (_paid, record_id) in zip(labels, rows, strict=True)]
            connection.executemany("UPDATE orders SET paid = ? WHERE id = ?", shuffled)

    def list(self):
        return {
            line["release"]: line
            for line in map(json.loads, self.project.succeed("releases", "--json").stdout.split("\n")[:-1])
        }

    @property
    def pointer(self):
        return self.releases.pointer()

    def truth(self, release):
        """Return a release's predictions from its table, by record ID."""
        pages = self.connection.scan(release_table(self.name, release), b"", b"")
        return {
            row.key.decode().partition(":")[2]: [
                row.cells[cell_column(name)].value.decode() for name in (PREDICTION, PROBABILITY)
            ]
            for page in pages
            for row in page
        }


FORCED = "half of the records were changed on purpose"


@pytest.fixture(scope="module")
def shared(project, tmp_path_factory, trained):
    """Two releases, loaded and activated one after the other; in the second, about every other record has changed."""
    folder = tmp_path_factory.mktemp("orders")
    orders = project((make_orders(folder) / "predictions.toml").read_text(), folder, commands=False)
    operated = Operated(orders)
    with operated.connection:
        first = orders.take(trained).release
        for stage in ("score --runner local", "load --via puts", "activate"):
            orders.succeed(*stage.split())
        operated.change("UPDATE orders SET amount = 501 - amount WHERE items % 2")
        second = operated.load()
        orders.succeed("activate", "--release", second, "--force", FORCED)
        operated.keep()
        yield operated, (first, second)


@pytest.fixture
def operated(shared):
    """The orders with their two releases, without what other tests have done to them."""
    shared[0].restore()
    return shared[0]


@pytest.fixture
def two(shared):
    return shared[1]


def test_the_switch_the_way_back_and_the_list(operated, two):
    first, second = two
    project = operated.project
    assert (operated.pointer.current, operated.pointer.history) == (second, [first])
    assert [(line["role"], line["state"], line["rows"]) for line in operated.list().values()] == [
        ("current", "loaded", 400),
        ("previous", "loaded", 400),
    ]
    rollback = project.succeed("rollback")
    assert f"release {first} is served again; release {second} is rolled back" in rollback.stderr
    assert project.get("order-001")[0]["release"] == first
    assert [line["role"] for line in operated.list().values()] == ["rolled back", "current"]
    assert "nothing to go back to" in project.succeed("rollback", code=2).stderr
    activation = project.run("activate", "--release", second)
    assert activation.returncode == 3
    project.succeed("activate", "--release", second, "--force", "looked at it")
    assert (operated.pointer.current, operated.pointer.rolled_back) == (second, [])
    printed = project.succeed("releases").stdout
    assert [line.split()[:2] for line in printed.splitlines()[1:]] == [[second, "current"], [first, "previous"]]
    row = operated.connection.row(operated.name, b"release:" + second.encode())
    assert json.loads(row[b"r:gates"].value)["forced"] == "looked at it"


def test_of_two_operators_at_once_one_is_refused(operated, two):
    first, second = two
    serial = operated.pointer.serial
    operated.releases.rollback()
    with pytest.raises(RefusedError, match="another release was activated just now"):
        operated.releases.activate(second, force=True, serial=serial)
    operated.releases.activate(second, force=True)
    results = []

    def operate():
        with Connection(operated.project.settings.hbase.server(loading=True)) as connection:
            releases = Releases(connection, operated.name)
            barrier.wait()
            try:
                results.append(releases.rollback().current)
            except RefusedError as error:
                results.append(error)

    for _attempt in range(20):  # until two operations meet
        results.clear()
        barrier = threading.Barrier(2)
        threads = [threading.Thread(target=operate) for _ in range(2)]
        operated.releases.activate(second, force=True)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if any(isinstance(result, RefusedError) for result in results):
            break
    assert sorted(map(str, results)) == sorted(
        [first, str(RefusedError(f"another release was activated just now; check it before {first} replaces it"))]
    )


@contextmanager
def damaged(folder, path, damage):
    """Change the lines of a release's file for a while; None adds a copy of the file, under another part's name."""
    data = b"".join(folder.blocks(path))
    copy = path[:-1] + "9"
    if damage:
        folder.storage.fs.pipe_file(path, join_lines(damage(split_lines(data))))
    else:
        folder.storage.fs.pipe_file(copy, data)
    yield
    if damage:
        folder.storage.fs.pipe_file(path, data)
    else:
        folder.storage.fs.rm(copy)


def other_id(lines):
    """Give the second line another ID, whose row key is still between its neighbours'."""
    first, second, third = (line.partition(b"\t")[0] for line in lines[:3])
    record_ids = (b"other-%d" % number for number in range(1_000_000))
    key = next(key for key in (row_keys([record_id])[0] for record_id in record_ids) if first < key < third)
    return [lines[0], lines[1].replace(second, key), *lines[2:]]


def test_a_tampered_release_is_refused_and_never_served(operated, trained):
    project, pointer = operated.project, operated.pointer
    release = project.storage.new_release().release
    folder = project.take(trained, release)
    exported = folder.files("export")[0]
    for damage, message in (
        (lambda lines: lines[1:], "400 records were exported, but the job read 399"),
        (
            lambda lines: [lines[0].replace(b"order-", b"other-", 1), *lines[1:]],
            "the job did not score the records that were exported: 400 exported (ID digest ",
        ),
    ):
        with damaged(folder, exported, damage):
            assert message in project.succeed("score", "--runner", "local", code=6).stderr
    project.succeed("score", "--runner", "local")
    scored = folder.files("scored")[0]
    for damage, code, message in (
        (None, 2, "part-00009: the release has 4 parts, each once; remove extra files"),
        (lambda lines: lines[1:], 5, "but 399 loaded (ID digest "),
        (other_id, 5, "but 400 loaded (ID digest "),
    ):
        with damaged(folder, scored, damage):
            assert message in project.succeed("load", "--via", "puts", code=code).stderr
            refused = project.succeed("activate", "--force", "now", code=2).stderr
            assert f"release {release} is not loaded" in refused
    assert operated.pointer == pointer
    assert project.get("order-001")[0]["release"] == pointer.current
    # The undamaged files are loaded whole, in place of the rows that the refused loads have left.
    project.succeed("load", "--via", "puts")
    project.succeed("verify", "--full")


def test_two_percent_of_failed_records_are_refused_by_either_gate(operated):
    project, pointer = operated.project, operated.pointer
    operated.change("UPDATE orders SET amount = 'x' || amount WHERE id < 'order-009' AND amount IS NOT NULL")
    project.succeed("export")
    project.succeed("train")
    failed = "8 of 400 records could not be scored"
    refused = project.succeed("score", "--runner", "local", code=3).stderr
    assert f"{failed}, more than gates.max_failed (1.00%) allows: amount: not a number (8)" in refused
    project.succeed("score", "--runner", "local", code=1, PREDICTIONS_GATES_MAX_FAILED="0.05")
    project.succeed("load", "--via", "puts")
    assert f"gate max_failed: FAILED: {failed}: 2.00%, at most 1.00%" in project.succeed("activate", code=3).stderr
    assert operated.pointer == pointer


def test_a_prediction_is_explained_back_to_its_lines(operated):
    operated.change("UPDATE orders SET note = 'other' WHERE id = 'order-007'")
    explanation = json.loads(operated.project.succeed("explain", "--json", "order-007").stdout)
    folder = operated.project.storage.release(explanation["release"])
    assert (explanation["id"], explanation["status"], explanation["record"]["note"]) == ("order-007", "fresh", "other")
    assert explanation["model"]["sha256"] == manifest_of(folder).model.sha256
    for line, first_field in (
        (explanation["prediction_line"], explanation["row_key"]),
        (explanation["record_line"], "order-007"),
    ):
        lines = b"".join(folder.blocks(line["file"])).decode().splitlines()
        assert lines[line["line"] - 1] == line["text"]
        assert line["text"].split("\t")[0] == first_field
    text = operated.project.succeed("explain", "order-007").stdout
    assert f"HistGradientBoostingClassifier, sha256 {explanation['model']['sha256']}" in " ".join(text.split())
    missing = json.loads(operated.project.succeed("explain", "--json", "nobody").stdout)
    assert (missing["status"], missing["prediction_line"], missing["record_line"]) == ("missing", None, None)


def test_the_report_of_a_release_names_the_one_before_it_and_what_the_gates_said(operated, two, tmp_path):
    first, second = two
    path = operated.project.succeed("report", second, "--output", str(tmp_path / "new")).stdout.strip()
    assert path == str(tmp_path / "new" / f"report-{second}.html")
    html = (tmp_path / "new" / f"report-{second}.html").read_text()
    assert all(text in html for text in (f"compared with {first}", "gates.max_psi", "failed", f"Forced: {FORCED}"))
    pictures = ("calibration", "changes", "classes", "distribution", "drift", "stages")
    assert sorted(path.name for path in (tmp_path / "new").glob("*.png")) == [
        f"report-{second}-{picture}.png" for picture in pictures
    ]
    (tmp_path / "file").write_text("")
    refused = operated.project.succeed("report", first, "--output", str(tmp_path / "file"), code=2).stderr
    assert f"{tmp_path / 'file'}: File exists; choose another folder with --output" in refused


def test_readers_without_pause_while_releases_switch(operated, two, full):
    truth = {release: operated.truth(release) for release in two}
    ids = sorted(truth[two[0]])
    assert any(truth[two[0]][record_id] != truth[two[1]][record_id] for record_id in ids)
    stop, wrong_answers, answered = threading.Event(), [], [0] * READERS
    last_seen: list[dict[str, float]] = [{} for _ in range(READERS)]  # for each reader, when it last saw each release

    def read(reader):
        client, generator = Client(operated.project.settings), random.Random(reader)
        while not stop.is_set():
            record_id = generator.choice(ids)
            began = time.monotonic()
            answer = client.get(record_id)
            expected = truth.get(answer.release, {}).get(record_id)
            if not expected or answer.status not in ("fresh", "changed"):
                is_right = False
            else:
                prediction, probability = expected
                is_right = (str(answer.prediction), answer.probability) == (prediction, float(probability))
            if not is_right:
                wrong_answers.append(answer)
            last_seen[reader][answer.release] = began
            answered[reader] += 1

    threads = [threading.Thread(target=read, args=(reader,)) for reader in range(READERS)]
    for thread in threads:
        thread.start()
    switched = 0.0
    try:
        for turn in range(100 if full else 10):
            if turn % 2:
                operated.project.succeed("activate", "--release", two[1], "--force", "again")
            else:
                operated.project.succeed("rollback")
            switched, answered_before = time.monotonic(), list(answered)
            old = two[0] if turn % 2 else two[1]
            while any(now < then + 3 for now, then in zip(answered, answered_before, strict=True)):
                time.sleep(0.05)
            assert max(times.get(old, 0.0) for times in last_seen) < switched + FOLLOWS
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong_answers == []
    assert min(answered) > 30


def test_a_model_of_shuffled_labels_is_refused_and_kept_from_readers(operated):
    current = operated.pointer.current
    operated.shuffle_labels()
    release = operated.load()
    refused = operated.project.succeed("activate", code=3)
    assert "gate min_skill: FAILED: log loss on the holdout" in refused.stderr
    assert f"release {release} is refused by gates.min_skill" in refused.stderr.splitlines()[-1]
    assert (operated.pointer.current, operated.list()[release]["state"]) == (current, REFUSED)
    assert operated.project.get("order-001")[0]["release"] == current
    operated.project.succeed("activate", "--force", "to see it")
    assert (operated.pointer.current, operated.releases.state(release)) == (release, LOADED)


def test_too_many_records_that_are_gone_are_refused(operated):
    current = operated.pointer.current
    operated.change("UPDATE orders SET paid = (coalesce(amount, 0) > 200)")
    operated.change("DELETE FROM orders WHERE id >= 'order-300'")
    release = operated.load()
    refused = operated.project.succeed("activate", code=3)
    assert "gate max_gone: FAILED: 100 of 400 records are gone: 25.00%, at most 20.00%" in refused.stderr
    assert operated.pointer.current == current
    operated.change("DELETE FROM orders WHERE id = 'order-299'")
    stderr = operated.project.succeed("activate", code=3).stderr
    assert "300 records were exported, the database has 299 now (-1)" in stderr
    comparison = operated.project.succeed("compare", current, release)
    assert "100 records are gone, 0 are new" in comparison.stdout


def test_expired_releases_are_removed_but_never_the_served_or_the_previous_one(operated, two):
    project, storage = operated.project, operated.project.storage
    retention = {"PREDICTIONS_RETENTION_GRACE_HOURS": "0", "PREDICTIONS_RETENTION_KEEP": "1"}
    # One release older than the served and the previous one, and two that are newer.
    hour_ago = f"{datetime.now(UTC) - timedelta(hours=1):%Y%m%dT%H%M%SZ}"
    for release, state in ((hour_ago, LOADED), (None, REFUSED), (None, REFUSED)):
        release = release or storage.new_release().release
        operated.enter(project.take(storage.release(two[0]), release, "export"), state)
    assert "nothing to remove" in project.succeed("releases", "--clean").stderr  # each release has a day of grace
    crashed = project.succeed("export").stdout.strip()
    storage.fs.pipe_file(f"{storage.folder}/{two[0]}/_part-00000.12345678", b"half of it")
    pointer, listed = operated.pointer, operated.list()
    kept = {pointer.current, pointer.history[-1]}
    newest = max(release for release, line in listed.items() if line["state"] in (LOADED, REFUSED))
    removed = project.succeed("releases", "--clean", **retention).stdout
    assert f"{crashed}: it was started but never loaded: {storage.folder}/{crashed}" in removed
    assert "_part-00000.12345678" in removed
    assert {release for release, line in operated.list().items() if line["state"] != DROPPED} == kept | {newest}
    assert operated.tables() == {release_table(operated.name, release) for release in kept | {newest}}
    assert set(storage.names(storage.folder)) == kept | {newest}
    assert "nothing to remove" in project.succeed("releases", "--clean", **retention).stderr
    assert operated.pointer == pointer
    for release in listed.keys() - kept - {newest, crashed}:
        refused = project.run("activate", "--release", release)
        assert (refused.returncode, f"release {release} was removed" in refused.stderr) == (2, True)


def test_an_incomplete_release_is_refused_even_with_force(operated, two):
    first, _second = two
    manifest = operated.releases.manifest(first)
    part, *other_parts = manifest.loaded.parts
    loaded = replace(manifest.loaded, parts=[replace(part, rows=part.rows - 1), *other_parts])
    broken = replace(manifest, loaded=loaded)
    operated.releases.finish(first, broken)
    refused = operated.project.succeed("activate", "--release", first, "--force", "please", code=3)
    assert "is not complete: 400 scored or failed (ID digest" in refused.stderr
    assert "but 399 loaded (ID digest" in refused.stderr
