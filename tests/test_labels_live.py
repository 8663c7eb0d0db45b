"""Three labels on the live cluster: a job, HFiles, a lookup of each kind, and a second run of what has changed."""

import json
import sqlite3
from contextlib import closing

import pytest
from conftest import make_orders, manifest_of
from services import service
from test_labels import COLUMNS, FAILED, SETTINGS, SIZE, answers_of
from test_page import browser

pytestmark = pytest.mark.cluster
__all__ = ["browser"]


@pytest.fixture(scope="module")
def made(project, tmp_path_factory):
    folder = make_orders(tmp_path_factory.mktemp("live"))
    with closing(sqlite3.connect(folder / "orders.db")) as connection, connection:
        connection.execute("UPDATE orders SET amount = 'twelve' WHERE id = ?", (FAILED,))
    return project(SETTINGS, folder)


def test_each_way_of_a_lookup_has_all_labels(made, browser):
    ended = made.succeed("run", code=1)
    assert "gate max_failed: passed: size:%: 1 of 400" in ended.stderr
    release = made.storage.release()
    assert manifest_of(release).columns == COLUMNS
    expected = answers_of(release, made.settings)
    answers = {answer["id"]: answer for answer in made.get(*expected)}
    for name, answer in answers.items():
        as_json = json.loads(json.dumps(expected[name].as_json()))
        assert {key: answer.get(key) for key in ("labels", "status", "error")} == {
            key: as_json.get(key) for key in ("labels", "status", "error")
        }
    assert "400 rows" in made.succeed("verify", "--full").stderr.replace(",", "")
    explained = json.loads(made.succeed("explain", "order-001", "--json").stdout)
    assert list(explained["models"]) == ["paid", SIZE, "total"]
    assert f"prediction of {SIZE}" in made.succeed("explain", "order-001").stdout
    with service(made.path, made.path.parent) as running:
        assert running.get("/records/order-001").json()["labels"] == answers["order-001"]["labels"]
        page = browser.new_page()
        page.goto(f"{running.url}/#order-001")
        page.wait_for_selector("#prediction p")
        texts = page.locator("#prediction p").all_inner_texts()
        assert [text.split("\u00a0")[0].split(" ")[0] for text in texts] == [
            str(answers["order-001"]["labels"][label]["prediction"]) for label in ("paid", SIZE, "total")
        ]
        assert page.locator("#prediction meter").count() == 2
        page.close()


def test_a_second_run_scores_what_has_changed(made, full):
    if not full:
        pytest.skip("--full runs it; without a job, it is tested in test_labels.py")
    with closing(sqlite3.connect(made.path.parent / "orders.db")) as connection, connection:
        connection.execute("UPDATE orders SET amount = 77 WHERE id = 'order-001'")
    made.succeed("run", "--changed", code=1)
    release = made.storage.release()
    assert (release.scored.carried, release.scored.rows) == (399, 400)
    [answer] = made.get("order-001")
    assert (answer["status"], answer["labels"].keys()) == ("fresh", {"paid", SIZE, "total"})
    assert made.succeed("report", release.release, "--output", str(made.path.parent)).returncode == 0
