"""Fixtures that several test files share: a small database, settings for it, the embedded cluster."""

import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from predictions.export import export
from predictions.settings import load_settings
from predictions.storage import Storage
from predictions.training import train

CHECKOUT = Path(__file__).resolve().parent.parent

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


def pytest_addoption(parser):
    parser.addoption("--require-cluster", action="store_true", help="fail, rather than skip, without the cluster")


def make_orders(folder: Path) -> Path:
    """Make a database of 400 orders with numbers, categories, missing values and unknown labels, and its settings."""
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
    """The folder of a release of the orders, exported and trained. Not to be changed."""
    settings = load_settings(session_orders / "predictions.toml")
    folder = export(settings, Storage(settings.hadoop.storage, settings.name), lambda _done, _total: None)
    train(settings, folder, lambda _text: None)
    return Path(folder.path)


@pytest.fixture
def predictions(orders) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in the orders' folder."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "predictions", *arguments],
            cwd=orders,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "COLUMNS": "200", **environment},
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture(scope="session")
def cluster(request):
    """The embedded cluster, which must be running."""
    from hadoop.config import ClusterConfig
    from hadoop.engine import Cluster

    running = Cluster(ClusterConfig.from_environment())
    states = dict(running.status())
    if not all(state.startswith("running") for state in states.values()):
        message = f"the embedded cluster is not running (hadoop/cluster start): {states}"
        if request.config.getoption("--require-cluster"):
            pytest.fail(message)
        pytest.skip(message)
    return running
