"""Releases on the live cluster: the gates before the switch, the switch and the way back, under readers without pause."""

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
from predictions.formats.prediction_line import texts
from predictions.formats.record_line import join_lines, split_lines
from predictions.formats.row_key import row_keys
from predictions.hbase.connection import Connection
from predictions.hbase.releases import DROPPED, LOADED, REFUSED, Releases
from predictions.lookup.client import Client

pytestmark = pytest.mark.cluster

READERS = 8
FOLLOWS = 1.0  # seconds after a switch in which every reader sees it; on a busy machine it is far less all the same


class Operated:
    """Predictions of the orders, and what an operator does with their releases."""

    def __init__(self, made):
        self.made = made
        self.name = made.name
        self.database = made.path.parent / "orders.db"
        self.connection = Connection(made.settings.hbase.server(loading=True))
        self.releases = Releases(self.connection, made.name)

    def load(self):
        """Make a release, up to its table, and return its ID."""
        release = self.made.succeed("export").stdout.strip()
        for stage in (["train"], ["score", "--runner", "local"], ["load", "--via", "puts"]):
            self.made.succeed(*stage)
        return release

    def enter(self, folder, state):
        """Let a release of another's files be one that was loaded, with an empty table."""
        self.connection.create_table(release_table(self.name, folder.release), "p")
        self.releases.finish(folder.release, manifest_of(folder))
        self.releases.judge(folder.release, state, {"gates": []})

    def tables(self):
        """The tables of the releases."""
        return {name for name in map(bytes.decode, self.connection.tables()) if name.startswith(f"{self.name}.")}

    def rows(self):
        """What HBase knows of the releases."""
        return {row.key: row.cells for page in self.connection.scan(self.name, b"", b"") for row in page}

    def keep(self):
        """Note how everything stands, for `restore`."""
        self._kept = self.rows(), self.tables(), self.made.storage.releases(), self.database.read_bytes()

    def restore(self):
        rows, tables, releases, orders = self._kept
        self.database.write_bytes(orders)
        for key in self.rows().keys() - rows.keys():
            self.connection.delete_row(self.name, key)
        for key, cells in rows.items():
            self.connection.put(self.name, key, {column: cell.value for column, cell in cells.items()})
        for table in self.tables() - tables:
            self.connection.delete_table(table)
        for release in set(self.made.storage.names(self.made.storage.folder)) - set(releases):
            self.made.storage.delete(f"{self.made.storage.folder}/{release}")

    def change(self, statement):
        with closing(sqlite3.connect(self.database)) as connection, connection:
            connection.execute(statement)

    def shuffle_labels(self):
        """Give the labels to other records, the same ones each time."""
        with closing(sqlite3.connect(self.database)) as connection, connection:
            rows = connection.execute("SELECT paid, id FROM orders WHERE paid IS NOT NULL ORDER BY id").fetchall()
            labels = [paid for paid, _id in rows]
            random.Random(1).shuffle(labels)
            shuffled = [(label, name) for label, (_paid, name) in zip(labels, rows, strict=True)]
            connection.executemany("UPDATE orders SET paid = ? WHERE id = ?", shuffled)

    def list(self):
        return {
            line["release"]: line
            for line in map(json.loads, self.made.succeed("releases", "--json").stdout.split("\n")[:-1])
        }

    @property
    def pointer(self):
        return self.releases.pointer()

    def truth(self, release):
        """A release's predictions by record ID, as they stand in its table."""
        pages = self.connection.scan(release_table(self.name, release), b"", b"")
        return {
            row.key.decode().partition(":")[2]: texts({column: cell.value for column, cell in row.cells.items()})
            for page in pages
            for row in page
        }


FORCED = "half of it is other on purpose"


@pytest.fixture(scope="module")
def shared(project, tmp_path_factory, trained):
    """Two releases, loaded and activated one after the other; of the second one, every other record is another."""
    folder = tmp_path_factory.mktemp("orders")
    made = project((make_orders(folder) / "predictions.toml").read_text(), folder, commands=False)
    operated = Operated(made)
    with operated.connection:
        first = made.take(trained).release
        for stage in ("score --runner local", "load --via puts", "activate"):
            made.succeed(*stage.split())
        operated.change("UPDATE orders SET amount = 501 - amount WHERE items % 2")
        second = operated.load()
        made.succeed("activate", "--release", second, "--force", FORCED)
        operated.keep()
        yield operated, (first, second)


@pytest.fixture
def operated(shared):
    """What is operated on, as it was when its two releases were there and nothing else had been done."""
    shared[0].restore()
    return shared[0]


@pytest.fixture
def two(shared):
    return shared[1]


def test_the_switch_the_way_back_and_the_list(operated, two):
    first, second = two
    made = operated.made
    assert (operated.pointer.current, operated.pointer.history) == (second, [first])
    assert [(line["role"], line["state"], line["rows"]) for line in operated.list().values()] == [
        ("current", "loaded", 400),
        ("previous", "loaded", 400),
    ]
    rolled = made.succeed("rollback")
    assert f"release {first} is served again; release {second} is rolled back" in rolled.stderr
    assert made.get("order-001")[0]["release"] == first
    assert [line["role"] for line in operated.list().values()] == ["rolled back", "current"]
    assert "nothing to go back to" in made.succeed("rollback", code=2).stderr
    again = made.run("activate", "--release", second)
    assert again.returncode == 3
    made.succeed("activate", "--release", second, "--force", "looked at it")
    assert (operated.pointer.current, operated.pointer.rolled_back) == (second, [])
    printed = made.succeed("releases").stdout
    assert [line.split()[:2] for line in printed.splitlines()[1:]] == [[second, "current"], [first, "previous"]]
    row = operated.connection.row(operated.name, b"release:" + second.encode())
    assert json.loads(row[b"r:gates"].value)["forced"] == "looked at it"


def test_of_two_operators_at_once_one_is_refused(operated, two):
    first, second = two
    serial = operated.pointer.serial
    operated.releases.rollback()
    with pytest.raises(RefusedError, match="another release became current just now"):
        operated.releases.activate(second, force=True, serial=serial)
    operated.releases.activate(second, force=True)
    results = []

    def operate():
        with Connection(operated.made.settings.hbase.server(loading=True)) as connection:
            releases = Releases(connection, operated.name)
            barrier.wait()
            try:
                results.append(releases.rollback().current)
            except RefusedError as error:
                results.append(error)

    for _attempt in range(20):  # until they meet
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
        [first, str(RefusedError(f"another release became current just now; check it before {first} replaces it"))]
    )


@contextmanager
def damaged(folder, path, damage):
    """A file of a release with other lines for a while; None for a copy of it beside it, under the next name."""
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
    """Another ID for the second line's, whose row key stands between its neighbours."""
    first, second, third = (line.partition(b"\t")[0] for line in lines[:3])
    names = (b"other-%d" % number for number in range(1_000_000))
    key = next(key for key in (row_keys([name])[0] for name in names) if first < key < third)
    return [lines[0], lines[1].replace(second, key), *lines[2:]]


def test_a_tampered_release_is_refused_and_never_served(operated, trained):
    made, pointer = operated.made, operated.pointer
    release = made.storage.new_release().release
    folder = made.take(trained, release)
    exported = folder.files("export")[0]
    for damage, message in (
        (lambda lines: lines[1:], "400 records were exported, but the job read 399"),
        (
            lambda lines: [lines[0].replace(b"order-", b"other-", 1), *lines[1:]],
            "the job did not score the records that were exported: 400 exported (ID digest ",
        ),
    ):
        with damaged(folder, exported, damage):
            assert message in made.succeed("score", "--runner", "local", code=6).stderr
    made.succeed("score", "--runner", "local")
    scored = folder.files("scored")[0]
    for damage, code, message in (
        (None, 2, "part-00009: the release has 4 parts, and each may be there only once"),
        (lambda lines: lines[1:], 5, "but 399 loaded (ID digest "),
        (other_id, 5, "but 400 loaded (ID digest "),
    ):
        with damaged(folder, scored, damage):
            assert message in made.succeed("load", "--via", "puts", code=code).stderr
            refused = made.succeed("activate", "--force", "now", code=2).stderr
            assert f"release {release} is {'building' if damage else 'not loaded'}" in refused
    assert operated.pointer == pointer
    assert made.get("order-001")[0]["release"] == pointer.current
    # As it was scored, it is loaded whole, in place of what the refused ones have left.
    made.succeed("load", "--via", "puts")
    made.succeed("verify", "--full")


def test_two_percent_of_failed_records_are_refused_by_either_gate(operated):
    made, pointer = operated.made, operated.pointer
    operated.change("UPDATE orders SET amount = 'x' || amount WHERE id < 'order-009' AND amount IS NOT NULL")
    made.succeed("export")
    made.succeed("train")
    failed = "8 of 400 records could not be scored"
    refused = made.succeed("score", "--runner", "local", code=3).stderr
    assert f"{failed}, more than gates.max_failed (1.00%) allows: amount: not a number (8)" in refused
    made.succeed("score", "--runner", "local", code=1, PREDICTIONS_GATES_MAX_FAILED="0.05")
    made.succeed("load", "--via", "puts")
    assert f"gate max_failed: REFUSED: {failed}: 2.00%, at most 1.00%" in made.succeed("activate", code=3).stderr
    assert operated.pointer == pointer


def test_a_prediction_is_explained_back_to_its_lines(operated):
    operated.change("UPDATE orders SET note = 'other' WHERE id = 'order-007'")
    found = json.loads(operated.made.succeed("explain", "--json", "order-007").stdout)
    folder = operated.made.storage.release(found["release"])
    assert (found["id"], found["status"], found["record"]["note"]) == ("order-007", "fresh", "other")
    assert found["model"]["sha256"] == manifest_of(folder).model.sha256
    for line, first in ((found["prediction_line"], found["row_key"]), (found["record_line"], "order-007")):
        lines = b"".join(folder.blocks(line["file"])).decode().splitlines()
        assert lines[line["line"] - 1] == line["text"]
        assert line["text"].split("\t")[0] == first
    shown = operated.made.succeed("explain", "order-007").stdout
    assert f"HistGradientBoostingClassifier, sha256 {found['model']['sha256']}" in " ".join(shown.split())
    gone = json.loads(operated.made.succeed("explain", "--json", "nobody").stdout)
    assert (gone["status"], gone["prediction_line"], gone["record_line"]) == ("missing", None, None)


def test_the_report_of_a_release_names_the_one_before_it_and_what_the_gates_said(operated, two, tmp_path):
    first, second = two
    path = operated.made.succeed("report", second, "--output", str(tmp_path / "new")).stdout.strip()
    assert path == str(tmp_path / "new" / f"report-{second}.html")
    shown = (tmp_path / "new" / f"report-{second}.html").read_text()
    assert all(text in shown for text in (f"compared with {first}", "gates.max_psi", "refused", f"Forced: {FORCED}"))
    pictures = ("calibration", "changes", "classes", "distribution", "drift", "stages")
    assert sorted(each.name for each in (tmp_path / "new").glob("*.png")) == [
        f"report-{second}-{n}.png" for n in pictures
    ]
    (tmp_path / "file").write_text("")
    refused = operated.made.succeed("report", first, "--output", str(tmp_path / "file"), code=2).stderr
    assert f"{tmp_path / 'file'}: File exists; choose another folder with --output" in refused


def test_readers_without_pause_while_releases_switch(operated, two, full):
    truth = {release: operated.truth(release) for release in two}
    ids = sorted(truth[two[0]])
    assert any(truth[two[0]][name] != truth[two[1]][name] for name in ids)
    stop, wrong, answered = threading.Event(), [], [0] * READERS
    seen: list[dict[str, float]] = [{} for _ in range(READERS)]  # of each reader, when it last saw each release

    def read(reader):
        client, chance = Client(operated.made.settings), random.Random(reader)
        while not stop.is_set():
            name = chance.choice(ids)
            began = time.monotonic()
            answer = client.get(name)
            expected = truth.get(answer.release, {}).get(name)
            if not expected or answer.status not in ("fresh", "changed"):
                right = False
            else:
                right = (str(answer.prediction), answer.probability) == (
                    expected["prediction"],
                    float(expected["probability"]),
                )
            if not right:
                wrong.append(answer)
            seen[reader][answer.release] = began
            answered[reader] += 1

    threads = [threading.Thread(target=read, args=(reader,)) for reader in range(READERS)]
    for thread in threads:
        thread.start()
    switched = 0.0
    try:
        for turn in range(100 if full else 10):
            if turn % 2:
                operated.made.succeed("activate", "--release", two[1], "--force", "again")
            else:
                operated.made.succeed("rollback")
            switched, before = time.monotonic(), list(answered)
            old = two[0] if turn % 2 else two[1]
            while any(now < then + 3 for now, then in zip(answered, before, strict=True)):
                time.sleep(0.05)
            assert max(last.get(old, 0.0) for last in seen) < switched + FOLLOWS
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert min(answered) > 30


def test_a_model_of_shuffled_labels_is_refused_and_kept_from_readers(operated):
    current = operated.pointer.current
    operated.shuffle_labels()
    release = operated.load()
    refused = operated.made.succeed("activate", code=3)
    assert "gate min_skill: REFUSED: log loss on the holdout" in refused.stderr
    assert f"release {release} is refused by gates.min_skill" in refused.stderr.splitlines()[-1]
    assert (operated.pointer.current, operated.list()[release]["state"]) == (current, REFUSED)
    assert operated.made.get("order-001")[0]["release"] == current
    operated.made.succeed("activate", "--force", "to see it")
    assert (operated.pointer.current, operated.releases.state(release)) == (release, LOADED)


def test_too_many_records_that_are_gone_are_refused(operated):
    current = operated.pointer.current
    operated.change("UPDATE orders SET paid = (coalesce(amount, 0) > 200)")
    operated.change("DELETE FROM orders WHERE id >= 'order-300'")
    release = operated.load()
    refused = operated.made.succeed("activate", code=3)
    assert "gate max_gone: REFUSED: 100 of 400 records are gone: 25.00%, at most 20.00%" in refused.stderr
    assert operated.pointer.current == current
    operated.change("DELETE FROM orders WHERE id = 'order-299'")
    told = operated.made.succeed("activate", code=3).stderr
    assert "300 records were exported, the database has 299 now (-1)" in told
    shown = operated.made.succeed("compare", current, release)
    assert "100 records are gone, 0 are new" in shown.stdout


def test_expired_releases_are_removed_but_never_the_served_or_the_previous_one(operated, two):
    made, storage = operated.made, operated.made.storage
    at_once = {"PREDICTIONS_RETENTION_GRACE_HOURS": "0", "PREDICTIONS_RETENTION_KEEP": "1"}
    # One that is older than those that are served, and two that are newer.
    hour_ago = f"{datetime.now(UTC) - timedelta(hours=1):%Y%m%dT%H%M%SZ}"
    for release, state in ((hour_ago, LOADED), (None, REFUSED), (None, REFUSED)):
        release = release or storage.new_release().release
        operated.enter(made.take(storage.release(two[0]), release, "export"), state)
    assert "nothing to remove" in made.succeed("releases", "--clean").stderr  # it has a day of grace
    crashed = made.succeed("export").stdout.strip()
    storage.fs.pipe_file(f"{storage.folder}/{two[0]}/_part-00000.12345678", b"half of it")
    pointer, before = operated.pointer, operated.list()
    served = {pointer.current, pointer.history[-1]}
    newest = max(release for release, line in before.items() if line["state"] in (LOADED, REFUSED))
    shown = made.succeed("releases", "--clean", **at_once).stdout
    assert f"{crashed}: it was begun and never loaded: {storage.folder}/{crashed}" in shown
    assert "_part-00000.12345678" in shown
    assert {release for release, line in operated.list().items() if line["state"] != DROPPED} == served | {newest}
    assert operated.tables() == {release_table(operated.name, release) for release in served | {newest}}
    assert set(storage.names(storage.folder)) == served | {newest}
    assert "nothing to remove" in made.succeed("releases", "--clean", **at_once).stderr
    assert operated.pointer == pointer
    for release in before.keys() - served - {newest, crashed}:
        refused = made.run("activate", "--release", release)
        assert (refused.returncode, f"release {release} is dropped" in refused.stderr) == (2, True)


def test_an_incomplete_release_is_refused_even_with_force(operated, two):
    first, _second = two
    manifest = operated.releases.manifest(first)
    part, *others = manifest.loaded.parts
    loaded = replace(manifest.loaded, parts=[replace(part, rows=part.rows - 1), *others])
    broken = replace(manifest, loaded=loaded)
    operated.releases.finish(first, broken)
    refused = operated.made.succeed("activate", "--release", first, "--force", "please", code=3)
    assert "is not whole: 400 scored or failed (ID digest" in refused.stderr
    assert "but 399 loaded (ID digest" in refused.stderr
