"""Fixtures that several test files share: a small database with settings, the embedded cluster, database servers."""

import os

from predictions.task.environment import ONE_THREAD

os.environ |= {**ONE_THREAD, "COLUMNS": "200"}  # before numpy and rich read them

import json
import random
import re
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
from costs import Costs
from inprocess import call, without, without_yarn
from xdist.scheduler import LoadScopeScheduling

from examples.postgresql import running
from predictions.formats.id_digest import IdDigest
from predictions.formats.manifest import Export, Manifest, Snapshot
from predictions.formats.record_line import Column
from predictions.hbase.connection import Connection
from predictions.hbase.server import Server
from predictions.settings import load_settings
from predictions.stages.export import export
from predictions.stages.train import train
from predictions.storage import ReleaseFolder, Storage

CHECKOUT = Path(__file__).resolve().parent.parent

PATIENCE = 120.0  # seconds that a request to HBase may take in tests that do not measure time

SETTINGS = """
name = "orders"
[database]
url = "sqlite:///orders.db"
table = "orders"
id = "id"
[model]
label = "paid"
features = ["country", "amount", "items"]
params = { max_iter = 10 }
[hadoop]
storage = "storage"
"""


def pytest_configure(config):
    config.pluginmanager.register(Costs(), "costs")
    # No deadlines: the machine may be busy with other work.
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile("tests", deadline=None, suppress_health_check=slow)
    hypothesis.settings.load_profile("tests")


def pytest_addoption(parser):
    parser.addoption(
        "--require-cluster", action="store_true", help="fail instead of skipping tests if the cluster is not running"
    )
    parser.addoption("--full", action="store_true", help="run the long forms of the tests")


# Tests on the second cluster.
ON_SECOND = (
    "tests/test_engine.py",
    "tests/test_load_faults.py",
    "tests/test_service_faults.py",
    "tests/test_doctor.py::test_safe_mode",
)


class ByFile(LoadScopeScheduling):
    """Give all tests of a file, which share fixtures, to one worker, and all tests on the second cluster to one worker.

    (`--dist loadgroup` of pytest-xdist 3.8 groups nothing with pytest 9.2.)
    """

    def _split_scope(self, nodeid):
        return "second" if nodeid.startswith(ON_SECOND) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items):
    """Run the tests on the second cluster first: they take longest."""
    items.sort(key=lambda item: not item.nodeid.startswith(ON_SECOND))


@pytest.fixture(scope="session")
def full(request) -> bool:
    """Return whether to run the long forms of the tests."""
    return request.config.getoption("--full")


def make_orders(folder: Path) -> Path:
    """Create a database of 400 orders with numbers, categories, missing values and unknown labels, and its settings."""
    random.seed(1)
    with closing(sqlite3.connect(folder / "orders.db")) as connection, connection:
        connection.execute(
            "CREATE TABLE orders (id TEXT PRIMARY KEY, country TEXT, amount REAL, items INTEGER, paid INTEGER, note TEXT)"
        )
        for number in range(400):
            amount = None if number % 11 == 0 else round(random.uniform(1, 500), 2)
            country = None if number % 13 == 0 else random.choice(["AT", "CH", "Côte d'Ivoire", "tab\there"])
            paid = None if number % 17 == 0 else int((amount or 0) + random.gauss(0, 50) > 200)
            row = (f"order-{number:03}", country, amount, random.randint(1, 9), paid, "free text")
            connection.execute("INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?)", row)
    (folder / "predictions.toml").write_text(SETTINGS)
    return folder


@pytest.fixture
def orders(tmp_path):
    return make_orders(tmp_path)


@pytest.fixture(scope="session")
def session_orders(tmp_path_factory):
    return make_orders(tmp_path_factory.mktemp("orders"))


@pytest.fixture(scope="session")
def trained(session_orders) -> Path:
    """Return the folder of an exported and trained release of the orders. Tests must not change it."""
    settings = load_settings(session_orders / "predictions.toml")
    with without():
        folder = export(settings, Storage(settings.hadoop.storage, settings.name), lambda _done, _total: None, print)
        train(settings, folder, lambda _text: None)
    return Path(folder.path)


@pytest.fixture
def predictions(orders) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a command in the orders' folder, with the options of `inprocess.call`."""
    return lambda *arguments, **options: call(arguments, orders, **options)


@pytest.fixture(scope="session")
def cluster(request):
    """The embedded cluster; without it, tests are skipped, or fail with --require-cluster."""
    from hadoop.config import ClusterConfig
    from hadoop.engine import Cluster

    embedded = Cluster(ClusterConfig.from_environment())
    states = dict(embedded.status())
    if not all(state.startswith("running") for state in states.values()):
        message = f"the embedded cluster is not running (hadoop/cluster start): {states}"
        if request.config.getoption("--require-cluster"):
            pytest.fail(message)
        pytest.skip(message)
    return embedded


@pytest.fixture(scope="session")
def server(cluster):
    """The cluster's Thrift server, with a long timeout: the machine may be busy with other work."""
    return Server("127.0.0.1", cluster.config.port("thrift"), timeout=PATIENCE)


@pytest.fixture(scope="session")
def second(cluster, tmp_path_factory):
    """A second cluster: a test may kill its daemons, and brings back those that it has killed."""
    from second import Second, kill_all

    second = Second(tmp_path_factory.mktemp("cluster"), cluster)
    try:
        second.begin()
        yield second
    finally:
        kill_all(second)


@pytest.fixture(scope="session")
def postgresql():
    """A PostgreSQL for the tests, in a folder that its user may enter: pytest's folders are closed to that user."""
    with tempfile.TemporaryDirectory(prefix="postgresql.") as folder:
        os.chmod(folder, 0o711)
        settings = {"fsync": "off", "max_connections": "50", "max_wal_senders": "4", "wal_level": "replica"}
        settings["autovacuum"] = "off"  # while it scans a table, no row that it may see is removed
        with running(Path(folder) / "server", **settings) as server:
            yield server


@pytest.fixture(scope="session")
def mariadb():
    """A MariaDB for the tests, in a folder that its user may enter, as for `postgresql`."""
    from mariadb import MariaDB

    with tempfile.TemporaryDirectory(prefix="mariadb.") as folder:
        os.chmod(folder, 0o711)
        server = MariaDB(Path(folder) / "server")
        try:
            server.start()
            yield server
        finally:
            server.remove()


def replace_export(folder, parts: Sequence[Sequence[bytes]]) -> None:
    """Replace the export of a release by other part files, and its counts in the manifest to match."""
    for path in folder.files("export"):
        folder.storage.fs.rm(path)
    for number, lines in enumerate(parts):
        data = b"".join(line + b"\n" for line in lines)
        folder.storage.fs.pipe_file(f"{folder.path}/export/part-{number:05d}", data)
    lines = [line for part in parts for line in part]
    manifest = manifest_of(folder)
    digest = IdDigest.of(line.partition(b"\t")[0] for line in lines)
    size = sum(len(line) + 1 for line in lines)
    export = replace(manifest.export, rows=len(lines), bytes=size, id_digest=digest)
    folder.write_manifest(replace(manifest, export=export))


def make_manifest(**parts) -> Manifest:
    """Return a manifest of the orders with the parts that a test needs."""
    columns = {"id": Column("id", "text"), "features": [Column("country", "text")], "label": Column("paid", "integer")}
    source, snapshot = {"table": "orders", "id": "id"}, Snapshot("2026-11-22T15:45:00.000+00:00")
    common = {"name": "orders", "release": "20261122T154500Z", "source": source, "snapshot": snapshot}
    return Manifest(**common | columns | {"export": Export()} | parts)


def manifest_of(folder):
    """Read a release's manifest anew: a folder object reads it only once."""
    return ReleaseFolder(folder.storage, folder.release).manifest


def properties(**values) -> dict[str, str]:
    """Return the environment variable that sets Hadoop properties of a job."""
    return {"PREDICTIONS_HADOOP_PROPERTIES": json.dumps(values)}


class Project:
    """Settings in their own folder, with a name on the cluster that no other project has.

    Args:
        folder: the folder that the settings are written to.
        cluster: the cluster that the commands use.
        text: the settings; name, HBase and Hadoop are replaced.
        hdfs: the folder on HDFS for its releases.
        yarn: whether jobs run on YARN.
        commands: whether the commands `hadoop` and `hbase` exist; without them a table has one region, and is created
            within a second.
    """

    def __init__(self, folder, cluster, text, hdfs="/tests", yarn=False, commands=True):
        self.path = folder / "predictions.toml"
        self.name = f"test_{uuid.uuid4().hex[:8]}"
        self._yarn = yarn
        self._environment = {"CLUSTER_DIR": str(cluster.config.folder)}
        thrift, web = cluster.config.port("thrift"), cluster.config.port("namenode_web")
        text = re.sub(r"(?m)^name = .*", f'name = "{self.name}"', text)
        text = re.sub(r"(?ms)^\[hbase\].*", "", text) if "[hbase]" in text else re.sub(r"(?ms)^\[hadoop\].*", "", text)
        commands_folder = CHECKOUT / "hadoop" / "bin" if commands else folder / "no-commands"
        commands_folder.mkdir(exist_ok=True)
        self.path.write_text(
            f'{text}\n[hbase]\nthrift = "127.0.0.1:{thrift}"\nregions = 4\ntimeout = {PATIENCE}\n'
            f'[hadoop]\nstorage = "webhdfs://127.0.0.1:{web}{hdfs}"\nbin = "{commands_folder}"\n'
            f'python = "{sys.executable}"\n'
        )
        self.settings = load_settings(self.path)
        self.storage = Storage(self.settings.hadoop.storage, self.name)

    def run(self, *arguments, **options):
        """Run a command by `inprocess.call` in an empty folder: a job without YARN links its files there."""
        with tempfile.TemporaryDirectory() as folder, without_yarn(not self._yarn and self.storage):
            return call(["--settings", str(self.path), *arguments], folder, **self._environment | options)

    def popen(self, *arguments, **environment):
        """Start `predictions` as a process."""
        command = [sys.executable, "-m", "predictions", "--settings", str(self.path), *arguments]
        return self.start(command, None, PYTHONPATH=str(CHECKOUT), **environment)

    def start(self, command, folder, **environment):
        """Start a process whose environment names the cluster."""
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **self._environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def succeed(self, *arguments, code=0, **options):
        result = self.run(*arguments, **options)
        assert result.returncode == code, result.stderr
        return result

    def get(self, *ids):
        return [json.loads(line) for line in self.succeed("get", "--json", *ids).stdout.splitlines()]

    def train(self):
        """Export and train, and return the release's folder."""
        for stage in ("export", "train"):
            self.succeed(stage)
        return self.storage.release()

    def take(self, folder, release=None, stage="score"):
        """Copy a release from another storage, as it was after a stage, and return the folder of the copy.

        Args:
            folder: the release's folder, or its path on this machine.
            release: the ID of the copy; by default the release's own.
            stage: the last stage to copy: export, train or score.
        """
        if isinstance(folder, Path):
            folder = Storage(str(folder.parent.parent), folder.parent.name).release(folder.name)
        copy, files = ReleaseFolder(self.storage, release or folder.release), folder.storage.fs
        parts = {"export": ["export"], "train": ["export", "model"], "score": ["export", "model", "scored", "hfiles"]}
        for part in set(parts[stage]) & set(folder.storage.names(folder.path)):
            for path in files.find(f"{folder.path}/{part}"):
                self.storage.fs.pipe_file(copy.path + path.removeprefix(folder.path), files.cat_file(path))
        later = {"loaded"} if stage == "score" else {"model", "task", "scored", "loaded"}
        copy.write_manifest(replace(manifest_of(folder), **dict.fromkeys(later)))
        return copy

    def scored(self, folder):
        return b"".join(block for path in folder.files("scored") for block in folder.blocks(path))

    def remove(self):
        self.storage.delete(self.storage.folder)
        with Connection(self.settings.hbase.server()) as connection:
            for table in connection.tables():
                if table.decode().partition(".")[0] == self.name:
                    connection.delete_table(table.decode())


@pytest.fixture(scope="session")
def served(project, trained, tmp_path_factory):
    """The orders with a served release. Tests must change neither; those that need changes use another database."""
    folder = tmp_path_factory.mktemp("served")
    made = project((make_orders(folder) / "predictions.toml").read_text(), folder)
    made.take(trained)
    made.succeed("score", "--runner", "local", processes=True)
    for stage in ("load --via puts", "activate"):
        made.succeed(*stage.split())
    return made


@pytest.fixture(scope="session")
def project(cluster, tmp_path_factory, request):
    projects = []

    def project(text, folder=None, **options):
        projects.append(Project(folder or tmp_path_factory.mktemp("project"), cluster, text, **options))
        request.config.pluginmanager.get_plugin("costs").projects.add(projects[-1].name)
        return projects[-1]

    yield project
    with ThreadPoolExecutor(4) as pool:  # HBase takes a second per table, mostly waiting
        list(pool.map(Project.remove, projects))
