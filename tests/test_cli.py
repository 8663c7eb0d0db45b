"""The command line without a cluster: each mistake gives one clear line and its exit code."""

import configparser
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from conftest import CHECKOUT

from predictions.cli import export as export_command
from predictions.cli.get import print_table
from predictions.lookup.answer import Answer


@pytest.fixture
def edit(orders):
    def edit(old, new):
        path = orders / "predictions.toml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return edit


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def no_thrift():
    """Return settings of an unreachable HBase, with a short timeout."""
    return {"PREDICTIONS_HBASE_THRIFT": f"127.0.0.1:{closed_port()}", "PREDICTIONS_HBASE_TIMEOUT": "1"}


def fails(result, code, *parts):
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("predictions: ")
    for part in parts:
        assert part in line


def test_export_and_train_into_a_local_folder(predictions, orders):
    exported = predictions("export")
    assert exported.returncode == 0, exported.stderr
    release = exported.stdout.strip()
    assert re.fullmatch(r"\d{8}T\d{6}Z", release)
    assert "exported 400 records" in exported.stderr
    trained = predictions("train")
    assert trained.returncode == 0, trained.stderr
    assert re.search(r"roc auc 0\.\d+ \(baseline 0\.5000\), log loss 0\.\d+ \(baseline 0\.\d+\)", trained.stderr)
    assert (orders / "storage" / "orders" / release / "model" / "model.skops").exists()
    assert "model exists already" in predictions("train").stderr


def test_an_earlier_model_that_differs_from_the_settings_gives_a_warning(predictions, edit):
    first = predictions("export").stdout.strip()
    predictions("train")
    for new, is_warned in (("max_iter = 10", False), ("max_iter = 11", True)):
        edit("max_iter = 10", new)
        predictions("export")
        result = predictions("train", "--model", first)
        assert result.returncode == 0, result.stderr
        assert ("warning: the settings ask for another model" in result.stderr) is is_warned


def test_another_storage_by_option(predictions, orders):
    assert predictions("--storage", str(orders / "elsewhere"), "export").returncode == 0
    assert list((orders / "elsewhere" / "orders").iterdir())


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ('table = "orders"', 'tabel = "orders"', ["database.tabel", "did you mean 'table'"]),
        ("orders.db", "none.db", ["none.db", "no such file"]),
        ('table = "orders"', 'table = "order"', ["no table or view 'order'", "did you mean 'orders'"]),
        ('"amount"', '"amout"', ["no column 'amout'", "did you mean 'amount'"]),
        ('id = "id"', 'id = "country"', ["country is NULL"]),
        ('id = "id"', 'id = "note"', ["note is not unique", "free text"]),
    ],
)
def test_bad_settings_and_input(predictions, edit, orders, old, new, parts):
    edit(old, new)
    fails(predictions("export"), 2, *parts)
    assert not list(orders.glob("storage/**/*"))


def test_a_label_with_one_class(predictions, orders):
    with closing(sqlite3.connect(orders / "orders.db")) as connection, connection:
        connection.execute("UPDATE orders SET paid = 1 WHERE paid IS NOT NULL")
    predictions("export")
    fails(predictions("train"), 2, "model.label: paid is 1 in every labelled record")
    assert not list(orders.glob("storage/*/*/*model*"))


def test_stages_out_of_order_name_the_missing_one(predictions, edit):
    fails(predictions("train"), 2, "`predictions export`")
    predictions("export")
    fails(predictions("load"), 2, "`predictions score`")
    fails(predictions("train", "--release", "20200101T000000Z"), 2, "no release 20200101T000000Z")


def test_no_cluster(predictions, edit):
    port = closed_port()
    hdfs = f"webhdfs://127.0.0.1:{port}/predictions"
    for command in ("export", "train", "score", "load"):
        fails(predictions("--storage", hdfs, command), 4, f"127.0.0.1:{port}", "hadoop.storage")
    thrift = no_thrift()
    address = thrift["PREDICTIONS_HBASE_THRIFT"]
    fails(
        predictions("activate", "--release", "20200101T000000Z", **thrift),
        *(4, address, "hbase.thrift", "1 s at most (hbase.timeout)"),
    )
    # A lookup still returns the record.
    looked_up = predictions("get", "order-001", "--json", **thrift)
    assert looked_up.returncode == 4
    assert '"status": "unavailable"' in looked_up.stdout
    assert '"unavailable": ["hbase"]' in looked_up.stdout
    assert '"items"' in looked_up.stdout


def test_wrong_settings_of_a_lookup_exit_with_2_even_without_hbase(predictions):
    fails(
        predictions("get", "order-001", PREDICTIONS_DATABASE_TABLE="order", PREDICTIONS_HBASE_THRIFT="127.0.0.1:1"),
        2,
        "did you mean",
    )


def test_an_id_without_a_record_is_shown_in_one_line(capsys):
    assert len(list(print_table([Answer("a\tb", "missing", release="20261122T154500Z")]))) == 1
    assert capsys.readouterr().out == "a␉b · missing: no record has this ID\n"


def test_a_missing_value_is_a_dash_and_unavailable_halves_are_words(capsys):
    record = {"id": "7", "paid": None}
    list(print_table([Answer("7", "failed", record, release="20261122T154500Z", error="amount: not a number")]))
    lines = [line.strip(" │") for line in capsys.readouterr().out.splitlines()]
    assert [line.split() for line in lines if line.startswith(("paid", "prediction"))] == [
        ["paid", "–"],
        ["prediction", "–"],
    ]
    list(print_table([Answer("7", "unavailable", unavailable=["hbase", "database"])]))
    assert "unavailable  hbase, database" in capsys.readouterr().out


def test_a_record_is_one_line_of_the_table_however_narrow_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    answers = [Answer(letter * 90, "fresh", {"id": letter}, release="20261122T154500Z") for letter in "ab"]
    assert len(list(print_table(answers))) == 2
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("id ")
    assert [line.split()[:2] for line in lines] == [["a" * 90, "fresh"], ["b" * 90, "fresh"]]


def test_records_are_shown_as_they_are(predictions, orders):
    with closing(sqlite3.connect(orders / "orders.db")) as connection, connection:
        connection.execute("UPDATE orders SET note = '[/oops] [bold]hi', country = 'a[b]c' WHERE id = 'order-001'")
        connection.execute("INSERT INTO orders (id, amount) VALUES ('-5', 9e999)")
    thrift = no_thrift()
    shown = predictions("get", "order-001", **thrift).stdout
    assert "[/oops] [bold]hi" in shown
    assert "a[b]c" in shown
    [line] = predictions("get", "-5", "--json", **thrift).stdout.splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["record"]["amount"] == "inf"


@pytest.fixture
def scored(predictions, orders):
    """The folder of a release with two empty parts, as if it had been scored."""
    assert predictions("export").returncode == 0
    [release] = (orders / "storage" / "orders").iterdir()
    manifest = json.loads((release / "manifest.json").read_text())
    manifest["scored"] = {"rows": 0, "id_digest": "0" * 16, "split_points": ["8000"]}
    (release / "manifest.json").write_text(json.dumps(manifest))
    (release / "scored").mkdir()
    for name in ("_SUCCESS", "part-00000", "part-00001"):
        (release / "scored" / name).touch()
    return release


@pytest.mark.parametrize("name", ["part-00002", "part-000001", "part-00000.gz", "part-00000-copy"])
def test_a_part_that_stands_twice_is_refused_before_anything_is_loaded(predictions, scored, name):
    (scored / "scored" / name).touch()
    fails(predictions("load", **no_thrift()), 2, f"{name}: the release has 2 parts, each once; remove extra files")


def test_a_part_that_is_not_there_is_named(predictions, scored):
    (scored / "scored" / "part-00000").unlink()
    fails(predictions("load", **no_thrift()), 2, "scored: part-00000: missing; remove this folder and score again")


def test_a_load_without_hbase_or_hadoop(predictions, scored):
    thrift = no_thrift() | {"PREDICTIONS_HBASE_LOAD_TIMEOUT": "1"}
    parts = (thrift["PREDICTIONS_HBASE_THRIFT"], "1 s at most (hbase.load_timeout)", "hbase.thrift")
    fails(predictions("load", **thrift), 4, *parts)
    fails(predictions("load", "--runner", "hadoop", PATH="/nonexistent"), 2, "hadoop: no such command", "hadoop.bin")


def test_a_release_that_is_not_loaded_cannot_be_verified(predictions, scored):
    for arguments in (["verify"], ["verify", "--full"]):
        fails(predictions(*arguments, **no_thrift()), 2, f"{scored}: not loaded; `predictions load` loads it")


@pytest.mark.parametrize(
    "storage", ["webhdfs://h:abc/x", "s3://bucket/x", "webhdfs:///x", "webhdfs://h:1/a#b", "orders.db"]
)
def test_an_invalid_storage_is_refused(predictions, storage):
    fails(predictions("--storage", storage, "export"), 2)


def test_a_local_storage_may_have_any_name(predictions, orders):
    assert predictions("--storage", "st#1 ?x", "export").returncode == 0
    assert list((orders / "st#1 ?x" / "orders").iterdir())


def test_no_hadoop_command(predictions):
    predictions("export")
    predictions("train")
    fails(predictions("score", "--runner", "hadoop", PATH="/nonexistent"), 2, "hadoop: no such command", "hadoop.bin")
    fails(predictions("score", processes=True, PATH="/nonexistent"), 2, "sort: no such command")


def test_wrong_usage(predictions):
    wrong = (["nope"], ["explain"], ["export", "--nope"], ["load", "--rate", "0"], ["load", "--rate", "-1"])
    for arguments in (
        *wrong,
        ["load", "--processes", "0"],
        ["load", "--runner", "pipe"],
        ["verify", "--processes", "x"],
    ):
        result = predictions(*arguments)
        assert result.returncode == 2
        assert "Traceback" not in result.stderr


def test_an_error_of_our_own_is_not_taken_for_failed_records(predictions, monkeypatch):
    monkeypatch.setattr(export_command, "export", lambda *_arguments: 1 / 0)
    result = predictions("export")
    assert result.returncode == 6
    assert "ZeroDivisionError" in result.stderr


def test_init_writes_settings_that_work(predictions, orders):
    (orders / "predictions.toml").unlink()
    result = predictions("init", "sqlite:///orders.db", "orders", "--id", "id", "--label", "paid")
    assert result.returncode == 0, result.stderr
    text = (orders / "predictions.toml").read_text()
    assert 'features  = ["country", "amount", "items", "note"]' in text
    assert predictions("--storage", "local", "export").returncode == 0
    fails(predictions("init", "sqlite:///orders.db", "orders", "--id", "id", "--label", "paid"), 2, "exists already")
    (orders / "predictions.toml").unlink()
    fails(predictions("init", "sqlite:///orders.db", "orders", "--id", "id", "--label", "pay"), 2, "no column 'pay'")
    assert not (orders / "predictions.toml").exists()


def test_every_command_is_in_the_readme(predictions):
    text = "".join(path.read_text() for path in [CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")])
    listed = predictions("--help").stdout.partition("Commands:")[2]
    commands = re.findall(r"^  (\w+)", listed, re.MULTILINE)
    assert "export" in commands
    for command in commands:
        assert re.search(rf"\bpredictions {command}\b", text), command


def test_importing_the_client_is_lazy():
    probe = "import sys, predictions; predictions.Client; print({'sklearn', 'pandas', 'fastapi'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", probe], cwd=CHECKOUT, capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from predictions.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["get", "--json", "order-001"], 4, '"id": "order-001"'),  # lookups work
        (["export"], 2, "is not installed: pip install 'predictions[batch]'"),
        (["serve"], 2, "is not installed: pip install 'predictions[serve]'"),
    ],
)
def test_lookups_need_only_the_base_install(orders, arguments, code, message):
    metadata = configparser.ConfigParser()
    metadata.read(CHECKOUT / "setup.cfg")
    extras = {
        re.split("[>=]", line)[0] for lines in metadata["options.extras_require"].values() for line in lines.split()
    }
    modules = {"scikit-learn": "sklearn", "prometheus-client": "prometheus_client"}
    names = {modules.get(name, name) for name in extras}
    assert {"sklearn", "pandas", "fsspec", "matplotlib", "fastapi"} <= names
    result = subprocess.run(
        [sys.executable, "-c", f"EXTRAS = {names}{WITHOUT}", *arguments],
        cwd=orders,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **no_thrift()},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, message in result.stdout + result.stderr) == (code, True), result.stderr
    assert "Traceback" not in result.stderr


def test_get_at_a_terminal_without_ids_asks_for_ids(orders):
    controller, terminal = os.openpty()
    with open(controller, "wb"), open(terminal, "rb") as stdin:
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        command = [sys.executable, "-m", "predictions", "get"]
        result = subprocess.run(command, cwd=orders, env=environment, stdin=stdin, capture_output=True, text=True)
    assert (result.returncode, "no IDs: pass them" in result.stderr) == (2, True)


def test_ids_come_from_stdin_a_line_each(predictions, orders):
    ids = b"order-001\n no-order\n\norder-002" + b"\n\xff\n" + b"x" * 1_000_000
    result = predictions("get", "--json", stdin=ids, **no_thrift())
    answers = list(map(json.loads, result.stdout.splitlines()))
    assert [answer["id"] for answer in answers] == [
        "order-001",
        " no-order",
        "",
        "order-002",
        "\udcff",
        "x" * 1_000_000,
    ]
    assert ["record" in answer for answer in answers] == [True, False, False, True, False, False]
    assert {answer["status"] for answer in answers} == {"unavailable"}
    table = predictions("get", stdin=b"order-001\norder-002\n", **no_thrift()).stdout
    assert [line.split()[:2] for line in table.splitlines() if line.startswith("order")] == [
        ["order-001", "unavailable"],
        ["order-002", "unavailable"],
    ]
    assert predictions("get", stdin=b"").stdout == ""
