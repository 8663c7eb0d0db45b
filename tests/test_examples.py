"""The examples: their output, and that the command line accepts the commands in them."""

import os
import re
import runpy
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from types import ModuleType

import click
import pytest
from click.testing import CliRunner
from conftest import CHECKOUT, PATIENCE, make_orders
from inprocess import call

from examples import lookup
from predictions.cli.main import cli
from predictions.formats.prediction_line import parse_line
from predictions.lookup.answer import Answer
from predictions.storage import Storage

EXAMPLES = CHECKOUT / "examples"
SMALL_MODEL = {"PREDICTIONS_MODEL_PARAMS": '{"max_iter": 10}'}
NO_HBASE = {
    "PREDICTIONS_HBASE_THRIFT": "127.0.0.1:1",
    "PREDICTIONS_HBASE_TIMEOUT": "0.2",
    "PREDICTIONS_HBASE_LOAD_TIMEOUT": "0.2",
}


@pytest.fixture
def example(monkeypatch, capsys):
    """Return a function that runs a Python example in this process, and returns its exit code and output."""
    start_process = subprocess.run

    def start(command, **options):
        if command[:3] != [sys.executable, "-m", "predictions"]:
            return start_process(command, **options)
        ended = call(command[3:], os.getcwd())
        sys.stdout.write(ended.stdout)
        sys.stderr.write(ended.stderr)
        return ended

    def example(name, *arguments, folder, **environment):
        code = 0
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "argv", [name, *arguments])
            patch.setattr(subprocess, "run", start)
            for variable, value in environment.items():
                patch.setenv(variable, value)
            try:
                runpy.run_path(str(EXAMPLES / name), run_name="__main__")
            except SystemExit as ended:
                code = ended.code
        printed = capsys.readouterr()
        return subprocess.CompletedProcess([name, *arguments], code or 0, printed.out, printed.err)

    return example


def assert_is_a_command(arguments):
    """Check that the command line accepts a command, without running it."""
    with pytest.MonkeyPatch.context() as patch:
        # Group.invoke overrides this method, so that the subcommand and its options are still parsed.
        patch.setattr(click.Command, "invoke", lambda _command, _context: None)
        parsed = CliRunner().invoke(cli, arguments)
    assert parsed.exit_code == 0, parsed.output


@pytest.mark.parametrize(
    "arguments", [["run", "--nope"], ["nope"], ["releases", "--clean=1"], ["run", "--runner", "x"]]
)
def test_an_invalid_command_is_detected(arguments):
    with pytest.raises(AssertionError):
        assert_is_a_command(arguments)


# lookup.py


ORDER = {"prediction": 1, "probability": 0.93751, "scored": "2026-11-22T15:45:00Z", "release": "20261122T154500Z"}


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Answer("7", "fresh", **ORDER), "1, probability 0.938"),
        (Answer("7", "fresh", prediction=12.5), "12.5"),
        (Answer("7", "failed", error="amount: not a number"), "no prediction: amount: not a number"),
        (
            Answer("7", "expired", **ORDER),
            "1, probability 0.938; scored 2026-11-22T15:45:00Z: has the nightly run stopped?",
        ),
        (
            Answer("7", "changed", **ORDER),
            "1, probability 0.938; the record has changed since 2026-11-22T15:45:00Z",
        ),
        (
            Answer("7", "unscored", release="20261122T154500Z"),
            "no prediction yet: the record is not in release 20261122T154500Z",
        ),
        (Answer("7", "missing"), "the database has no record with this ID"),
        (Answer("7", "unavailable", error="HBase does not answer"), "try again later: HBase does not answer"),
    ],
)
def test_lookup_handles_each_status(answer, text):
    assert lookup.describe(answer) == text


def test_lookup_handles_the_documented_statuses():
    table = re.search(r"(?s)\| `unavailable` \|.*\n\| `fresh` \|", (CHECKOUT / "docs" / "client.md").read_text())[0]
    statuses = re.findall(r"(?m)^\| `(\w+)` \|", table)
    assert len(statuses) == 7
    for status in statuses:
        assert lookup.describe(Answer("7", status))


def test_lookup_without_hbase(example, orders):
    ended = example("lookup.py", "order-001", "no-order", folder=orders, **NO_HBASE)
    assert ended.returncode == 4
    lines = ended.stdout.splitlines()
    assert [line.partition(": try again later: ")[0] for line in lines] == [
        "order-001: unavailable",
        "no-order: unavailable",
    ]
    assert "127.0.0.1:1" in lines[0]


@pytest.fixture
def changed_orders(served, tmp_path):
    """A folder with the settings of the served release, and a database that has changed since."""
    make_orders(tmp_path)
    shutil.copy(served.path, tmp_path)
    with closing(sqlite3.connect(tmp_path / "orders.db")) as connection, connection:
        connection.execute("UPDATE orders SET amount = 7 WHERE id = 'order-002'")
        connection.execute("INSERT INTO orders (id, amount) VALUES ('new-order', 7)")
    return tmp_path


@pytest.mark.cluster
def test_lookup_of_a_served_release(example, served, changed_orders):
    ended = example("lookup.py", "order-001", "order-002", "new-order", "no-order", folder=changed_orders)
    assert ended.returncode == 0, ended.stderr
    [first, second] = served.get("order-001", "order-002")
    assert ended.stdout.splitlines() == [
        f"order-001: fresh: {first['prediction']}, probability {first['probability']:.3f}",
        f"order-002: changed: {second['prediction']}, probability {second['probability']:.3f}; "
        f"the record has changed since {second['scored']}",
        f"new-order: unscored: no prediction yet: the record is not in release {first['release']}",
        "no-order: missing: the database has no record with this ID",
    ]


# join.py


def write_csv(folder):
    (folder / "given.csv").write_text("key,weight\norder-001,1.5\norder-002,2.5\nnew-order,3.5\n")


def test_join_without_hbase(example, orders):
    write_csv(orders)
    ended = example("join.py", "given.csv", "key", folder=orders, **NO_HBASE)
    assert ended.returncode == 0, ended.stderr
    header, *rows, empty, count = ended.stdout.splitlines()
    assert header.split() == ["key", "weight", "status", "prediction", "probability", "error"]
    assert [row.split()[:5] for row in rows] == [
        ["order-001", "1.5", "unavailable", "<NA>", "<NA>"],
        ["order-002", "2.5", "unavailable", "<NA>", "<NA>"],
        ["new-order", "3.5", "unavailable", "<NA>", "<NA>"],
    ]
    assert (empty, count) == ("", "0 of 3 rows have a fresh prediction")


@pytest.mark.cluster
def test_join_with_a_served_release(example, served, changed_orders):
    write_csv(changed_orders)
    ended = example("join.py", "given.csv", "key", folder=changed_orders)
    assert ended.returncode == 0, ended.stderr
    _header, *rows, _empty, count, of_label = ended.stdout.splitlines()
    [first, second] = served.get("order-001", "order-002")
    shown = [row.split()[:4] for row in rows]
    assert shown == [
        ["order-001", "1.5", "fresh", str(first["prediction"])],
        ["order-002", "2.5", "changed", str(second["prediction"])],
        ["new-order", "3.5", "unscored", "<NA>"],
    ]
    assert count == "1 of 3 rows have a fresh prediction"
    assert of_label == f"{first['prediction']}: 1 rows, mean probability {first['probability']:.3f}"


# own_table.py


def write_own_table(orders, name):
    """Write the orders as a CSV file, with IDs of digits and a country called NA; return its folder."""
    with closing(sqlite3.connect(orders / "orders.db")) as connection:
        rows = connection.execute("SELECT substr(id, 7), country, amount, items, paid FROM orders").fetchall()
    lines = ["order_id,country,amount,items,paid"]
    for row in rows:
        values = ("" if value is None else str(value).replace("AT", "NA") for value in row)
        lines.append(",".join(values))
    folder = orders / "own"
    folder.mkdir()
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


def printed_lines(ended):
    """Return the prediction lines and the commands that own_table.py prints."""
    lines = ended.stdout.splitlines()
    first = lines.index("The first prediction lines:") + 1
    commands = [line.removeprefix("$ predictions ") for line in lines if line.startswith("$ ")]
    return [parse_line(line.encode()) for line in lines[first : first + 3]], commands


def test_own_table_without_a_cluster(example, orders):
    folder = write_own_table(orders, "shop")
    ended = example("own_table.py", "shop.csv", "order_id", "paid", folder=folder, **SMALL_MODEL)
    assert ended.returncode == 0, ended.stderr
    lines, commands = printed_lines(ended)
    assert commands == [
        "init sqlite:///shop.db shop --id order_id --label paid",
        "--storage local export",
        "--storage local train",
        "--storage local score --runner local",
    ]
    scored = [line for path in folder.glob("local/shop/*/scored/part-*") for line in path.read_bytes().splitlines()]
    assert len(scored) == 400
    assert len(lines) == 3
    for line in lines:
        assert re.fullmatch(rb"[0-9a-f]{4}:\d{3}", line.row_key)
        assert line.prediction in (b"0", b"1")
        assert 0.5 <= float(line.probability) <= 1
    with closing(sqlite3.connect(folder / "shop.db")) as connection:
        types = connection.execute(
            "SELECT typeof(amount), typeof(items), typeof(paid) FROM shop WHERE order_id = '001'"
        )
        assert types.fetchall() == [("real", "integer", "integer")]
        assert connection.execute("SELECT amount, paid FROM shop WHERE order_id = '000'").fetchall() == [(None, None)]
        assert connection.execute("SELECT count(*) FROM shop WHERE country = 'NA'").fetchone()[0] > 50


def test_own_table_ends_with_the_exit_code_of_what_failed(example, orders):
    folder = write_own_table(orders, "shop")
    ended = example("own_table.py", "shop.csv", "order_id", "pay", folder=folder)
    assert ended.returncode == 2
    assert ended.stdout == "$ predictions init sqlite:///shop.db shop --id order_id --label pay\n"
    assert "'pay'" in ended.stderr


@pytest.mark.cluster
def test_own_table_through_hbase(example, orders, project):
    made = project((orders / "predictions.toml").read_text(), commands=False)  # the fixture removes its tables later
    folder = write_own_table(orders, made.name)
    hbase = made.settings.hbase
    ended = example(
        "own_table.py",
        *(f"{made.name}.csv", "order_id", "paid", "007", "7", "399"),
        folder=folder,
        **SMALL_MODEL,
        PREDICTIONS_HBASE_THRIFT=hbase.thrift,
        PREDICTIONS_HBASE_TIMEOUT=str(PATIENCE),
        PREDICTIONS_HADOOP_BIN=str(made.settings.hadoop.bin),
    )
    assert ended.returncode == 0, ended.stderr
    _lines, commands = printed_lines(ended)
    assert commands[-3:] == ["--storage local load", "--storage local activate", "get 007 7 399"]
    scored = Storage(str(folder / "local"), made.name).release()
    lines = [line for path in scored.files("scored") for block in scored.blocks(path) for line in block.splitlines()]
    predicted = {line.row_key.partition(b":")[2].decode(): line.prediction.decode() for line in map(parse_line, lines)}
    header, *rows = ended.stdout.partition("$ predictions get 007 7 399\n")[2].splitlines()
    assert header.split()[:3] == ["id", "status", "prediction"]
    assert [row.split()[:3] for row in rows] == [
        ["007", "fresh", predicted["007"]],
        ["7", "missing"],
        ["399", "fresh", predicted["399"]],
    ]


# nightly


# It logs its arguments; `run` exits with the next of the given codes.
STAND_IN = """#!/bin/sh
echo "$@" >> calls
echo "$1: a line of the log"
[ "$1" = run ] || exit $(cat code-of-others)
code=$(head -n 1 codes)
sed -i 1d codes
exit "$code"
"""
REPORT, CLEAN = "report --output reports", "releases --clean"


@pytest.fixture
def flights(tmp_path):
    """A folder like /srv/flights, with a stand-in for `predictions`."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    program = tmp_path / ".venv" / "bin" / "predictions"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    (tmp_path / "code-of-others").write_text("0")
    return tmp_path


def run_shell(shell, command, flights, *codes):
    """Run a command of a schedule; return the result, and the arguments of its calls of `predictions`."""
    (flights / "codes").write_text("".join(f"{code}\n" for code in codes))
    (flights / "calls").unlink(missing_ok=True)
    environment = {**os.environ, "RETRY_SECONDS": "0"}
    ended = subprocess.run([shell, "-c", command], cwd=flights, env=environment, capture_output=True, text=True)
    calls = (flights / "calls").read_text().splitlines()
    for arguments in set(calls):
        assert_is_a_command(shlex.split(arguments))
    return ended, calls


def run_nightly(flights, *codes):
    """Run the command of the crontab as cron does."""
    lines = (EXAMPLES / "nightly" / "crontab").read_text().splitlines()
    [job] = [line for line in lines if re.match(r"[\d*]", line)]
    minute, hour, *days, command = job.split(maxsplit=5)
    assert (int(minute) < 60, int(hour) < 24, days) == (True, True, ["*", "*", "*"])
    return run_shell("sh", command.replace("/srv/flights", str(flights)), flights, *codes)


@pytest.mark.parametrize("codes", [(0,), (1,), (4, 0), (6, 1)])
def test_a_night_that_went_well_sends_no_mail(flights, codes):
    ended, calls = run_nightly(flights, *codes)
    assert (ended.returncode, ended.stdout, ended.stderr) == (codes[-1], "", "")
    assert calls == [*["run"] * len(codes), REPORT, CLEAN]
    [log] = (flights / "logs").iterdir()
    assert log.read_text().splitlines()[-2:] == ["report: a line of the log", "releases: a line of the log"]


@pytest.mark.parametrize(
    ("codes", "calls", "problem"),
    [
        ((2,), ["run"], "settings or data are wrong"),
        ((3,), ["run", REPORT], "refused by a gate (see reports), or another run is active"),
        ((4, 4), ["run", "run"], "a service cannot be reached"),
        ((4, 3), ["run", "run", REPORT], "refused by a gate (see reports), or another run is active"),
        ((5,), ["run"], "HBase does not have what was written"),
        ((6, 6), ["run", "run"], "the run failed"),
        ((130,), ["run"], "the run failed"),
    ],
)
def test_a_night_that_a_person_has_to_look_at_sends_a_mail(flights, codes, calls, problem):
    ended, actual_calls = run_nightly(flights, *codes)
    assert (ended.returncode, actual_calls) == (codes[-1], calls)
    first, *rest = ended.stdout.splitlines()
    [log] = (flights / "logs").iterdir()
    assert first == f"predictions: {problem}; `predictions run` exited with {codes[-1]}. The end of {log}:"
    assert rest == [f"{call.split()[0]}: a line of the log" for call in calls]
    assert ended.stderr == ""


def test_a_night_without_a_report_sends_a_mail(flights):
    (flights / "code-of-others").write_text("4")
    ended, calls = run_nightly(flights, 0)
    assert (ended.returncode, calls) == (0, ["run", REPORT, CLEAN])
    assert ended.stdout.startswith("predictions: no report; `predictions run` exited with 0.")


# Airflow


class Operator:
    """A stand-in for Airflow's BashOperator with the options that the example uses; it records its followers."""

    def __init__(self, *, task_id, bash_command, cwd, retries=0, retry_delay=None, trigger_rule="all_success"):
        self.task_id, self.command, self.folder = task_id, bash_command, cwd
        self.retries, self.retry_delay, self.trigger_rule = retries, retry_delay, trigger_rule
        self.followers = []

    def __rshift__(self, others):
        self.followers += others


class Dag:
    """A stand-in for Airflow's DAG."""

    def __init__(self, name, *, schedule, start_date, catchup, max_active_runs):
        assert (len(schedule.split()), catchup, max_active_runs) == (5, False, 1)

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        pass


@pytest.fixture
def tasks(monkeypatch):
    """The tasks of the DAG by name. Airflow need not be installed."""
    folders = ["airflow", "airflow.providers", "airflow.providers.standard", "airflow.providers.standard.operators"]
    contents = {"airflow.sdk": {"DAG": Dag}, "airflow.providers.standard.operators.bash": {"BashOperator": Operator}}
    for name in [*folders, *contents]:
        module = ModuleType(name)
        vars(module).update(contents.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)
    names = runpy.run_path(str(EXAMPLES / "nightly" / "airflow_dag.py"))
    return {value.task_id: value for value in names.values() if isinstance(value, Operator)}


def test_the_commands_of_the_dag_are_valid(tasks, flights):
    expected = {"run": "run", "report": REPORT, "clean": CLEAN}
    assert tasks.keys() == expected.keys()
    for name, arguments in expected.items():
        assert tasks[name].folder == "/srv/flights"
        ended, calls = run_shell("bash", tasks[name].command, flights, 0)
        assert (ended.returncode, calls) == (0, [arguments])
    codes = [run_shell("bash", tasks["run"].command, flights, code)[0].returncode for code in range(7)]
    assert [code == 0 for code in codes] == [True, True, False, False, False, False, False]


def test_the_dag_s_order(tasks):
    run, report, clean = (tasks[name] for name in ("run", "report", "clean"))
    assert run.followers == [report, clean]
    assert [task.trigger_rule for task in tasks.values()] == ["all_success", "all_done", "all_success"]
    assert (run.retries, run.retry_delay.total_seconds()) == (2, 600)
