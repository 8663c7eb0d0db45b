"""A real MLflow server for the tests, in an environment of its own, and a script that logs a model there."""

import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

# Fit a model on the accounts, log it, give its version the alias champion, and save it to a file as well.
LOG = """
import sqlite3
import sys

import mlflow
import mlflow.sklearn
import pandas as pd
import skops.io
from sklearn.ensemble import HistGradientBoostingClassifier

frame = pd.read_sql("SELECT * FROM accounts WHERE churned IS NOT NULL", sqlite3.connect(sys.argv[1]))
features = frame[["spent", "visits"]]
model = HistGradientBoostingClassifier(max_iter=10, max_depth=int(sys.argv[2])).fit(features, frame.churned)
trusted = ["sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"]
with mlflow.start_run():
    logged = mlflow.sklearn.log_model(
        model,
        name="model",
        signature=mlflow.models.infer_signature(features),
        skops_trusted_types=trusted,
        registered_model_name="churn",
    )
mlflow.MlflowClient().set_registered_model_alias("churn", "champion", logged.registered_model_version)
skops.io.dump(model, sys.argv[3])
"""


@pytest.fixture
def mlflow_python(tmp_path, monkeypatch):
    """Start a server on loopback, from the package index; return the Python of its environment."""
    pytest.importorskip("mlflow")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "mlflow", "scikit-learn", "skops", "pandas"], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/mlflow.db",
        "--artifacts-destination",
        str(tmp_path / "files"),
    ]
    with open(tmp_path / "server.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    try:
        for _turn in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield python
    finally:
        os.killpg(process.pid, 9)
        process.wait()
