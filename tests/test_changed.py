"""`predictions run --changed` on the live cluster, with a PostgreSQL database that changes between the runs."""

import psycopg
import pytest
from conftest import manifest_of

from predictions.formats.names import release_table
from predictions.hbase.connection import Connection
from predictions.hbase.releases import Releases

pytestmark = pytest.mark.cluster

ORDERS, FULL_ORDERS = 4_000, 20_000
SETTINGS = """
name = "orders"
[database]
url = "{url}"
table = "orders"
id = "id"
connections = 3
[model]
label = "paid"
features = ["country", "amount", "ordered"]
params = {{ max_iter = 10 }}
[hadoop]
storage = "storage"
"""


@pytest.fixture(scope="module")
def orders(full):
    """The number of orders. Even the lower one fills more than a block of the export."""
    return FULL_ORDERS if full else ORDERS


@pytest.fixture(scope="module")
def filled(postgresql, orders):
    with psycopg.connect(postgresql.url, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE orders (id uuid PRIMARY KEY, country text, amount numeric(10,2), ordered timestamptz, paid bool)"
        )
        connection.execute(
            "INSERT INTO orders SELECT md5(i::text)::uuid, (ARRAY['AT', 'CH', NULL])[i % 3 + 1], (i * 7919) % 500,"
            f" timestamptz '2026-01-01' + i * interval '1 minute', (i * 7919) % 500 > 200 FROM generate_series(1, {orders}) i"
        )
        connection.execute("CREATE TABLE kept AS TABLE orders")
        yield connection
        connection.execute("DROP TABLE orders, kept")


@pytest.fixture(scope="module")
def run(filled, project, postgresql):
    made = project(SETTINGS.format(url=postgresql.url))
    made.succeed("run")
    return made, made.storage.release()


@pytest.fixture
def database(filled):
    """The database as it was at the export of the first release."""
    filled.execute("TRUNCATE orders")
    filled.execute("INSERT INTO orders TABLE kept")
    return filled


@pytest.fixture
def made(run, database):
    """The project, with the first release served."""
    made, first = run
    with Connection(made.settings.hbase.server()) as connection:
        Releases(connection, made.name).activate(first.release, force=True)
    return made


def table_of(made, release):
    """Return the rows of a release's table: values by column, and the set of the cells' times."""
    with Connection(made.settings.hbase.server(loading=True)) as connection:
        scan = connection.scan(release_table(made.name, release), b"", b"", page_rows=1000)
        return {
            row.key: (
                {column: cell.value for column, cell in row.cells.items()},
                {c.timestamp for c in row.cells.values()},
            )
            for page in scan
            for row in page
        }


def test_a_run_with_changed_equals_a_full_run(made, database, run, orders, tmp_path):
    _made, first = run
    ids = [str(row[0]) for row in database.execute("SELECT id FROM orders ORDER BY id LIMIT 5")]
    assert [answer["status"] for answer in made.get(*ids)] == ["fresh"] * 5
    [answer] = made.get(ids[0].upper())
    assert answer["status"] == "missing"
    # Of each hundred records, one changes, one is deleted and one is new; about half of all labels change.
    hundredth = orders // 100
    database.execute(
        f"UPDATE orders SET amount = amount + 500 WHERE id IN (SELECT id FROM orders ORDER BY id LIMIT {hundredth})"
    )
    database.execute("UPDATE orders SET paid = NOT paid WHERE amount::int % 2 = 0")
    database.execute(f"DELETE FROM orders WHERE id IN (SELECT id FROM orders ORDER BY id DESC LIMIT {hundredth})")
    database.execute(
        f"INSERT INTO orders SELECT gen_random_uuid(), country, amount, ordered, paid FROM orders LIMIT {hundredth}"
    )
    assert [answer["status"] for answer in made.get(*ids)] == ["changed"] * 5
    result = made.succeed("run", "--changed")
    second = made.storage.release()
    assert second.release == result.stdout.strip() != first.release
    manifest = manifest_of(second)
    assert (manifest.scored.carried, manifest.scored.rows) == (orders - 2 * hundredth, orders)
    assert manifest.scored.carried_from == first.release
    assert manifest.model.sha256 == manifest_of(first).model.sha256
    assert (
        f"{orders - 2 * hundredth:,} are unchanged and keep their predictions from release {first.release}"
        in result.stderr
    )
    made.succeed("verify", "--full")
    assert [answer["status"] for answer in made.get(*ids)] == ["fresh"] * 5
    without_commands = {"PREDICTIONS_HADOOP_BIN": str(tmp_path)}
    for stage in ("export", f"train --model {first.release}", "score --runner local", "load --via puts"):
        made.succeed(*stage.split(), **without_commands)
    full_rows = table_of(made, made.storage.release().release)
    rows = table_of(made, second.release)
    assert {key: cells for key, (cells, _times) in rows.items()} == {
        key: cells for key, (cells, _t) in full_rows.items()
    }
    assert len(rows) == orders
    now = max(time for _cells, times in rows.values() for time in times)
    assert sum(times == {now} for _cells, times in rows.values()) == 2 * hundredth
    assert all(len(times) == 1 for _cells, times in rows.values())


def test_a_model_for_other_columns_is_refused_before_the_export(made):
    before = made.storage.releases()
    result = made.succeed("run", "--changed", code=2, PREDICTIONS_MODEL_FEATURES='["country"]')
    assert "predicts paid from country, amount, ordered; the settings ask for paid from country; omit" in result.stderr
    assert made.storage.releases() == before


def test_with_another_model_everything_is_scored(made):
    made.succeed("export")
    made.succeed("train", PREDICTIONS_MODEL_PARAMS='{"max_iter": 11}')  # the same settings would give the same model
    result = made.succeed("score", "--changed", "--runner", "local")
    assert "has another model: scoring every record" in result.stderr
    assert manifest_of(made.storage.release()).scored.carried == 0


def test_a_dry_run_prints_a_command_that_keeps_lines_and_the_local_runner_keeps_them(made, run, orders):
    _made, first = run
    made.succeed("export")
    assert made.get("x")[0]["release"] == first.release
    made.succeed("train", "--model", first.release)
    command = made.succeed("score", "--changed", "--dry-run").stdout
    release = made.storage.release().release
    assert f"mapper.py model.json {release} --unscored" in command
    assert f"--current=current.json --score model.json {release}" in command
    made.succeed("score", "--changed", "--runner", "local", processes=True)
    second = made.storage.release()
    assert (manifest_of(second).scored.carried, made.scored(second)) == (orders, made.scored(first))
