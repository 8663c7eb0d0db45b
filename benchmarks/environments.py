"""Virtual environments for what this package is compared with: they are made once, and kept in `var`."""

import importlib.metadata
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from benchmarks.flights import CHECKOUT, VAR
from predictions.task.environment import ONE_THREAD

SPARK = ("pyspark>=4.3", "pyarrow")
SPARK_SHARES = ("numpy", "pandas", "scikit-learn", "scipy", "skops", "xxhash")


def install_spark() -> Path:
    """Make the environment with Spark and what a model needs, if it is missing, and return the path of its Python."""
    return install("spark-venv", SPARK, SPARK_SHARES)


def install(name: str, requires: Sequence[str], shares: Sequence[str]) -> Path:
    """Make an environment if it is missing, and return the path of its Python.

    Args:
        name: the name of its folder.
        requires: packages, with the versions that are needed.
        shares: packages in the versions of this environment.
    """
    python = VAR / name / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", VAR / name], check=True)
    shared = [f"{package}=={importlib.metadata.version(package)}" for package in shares]
    options = ("--quiet", "--disable-pip-version-check")
    # If all is installed, pip only checks. Without -I, it would find this package in PYTHONPATH and miss what it needs.
    subprocess.run([python, "-I", "-m", "pip", "install", *options, *requires, *shared], check=True)
    return python


def spark_variables(python: Path, local: Path) -> dict[str, str]:
    """Return the environment variables for a program with Spark.

    Args:
        python: what `install_spark` has returned.
        local: a folder for temporary files.
    """
    return {
        **os.environ,
        **ONE_THREAD,  # each worker has one core
        "PYSPARK_PYTHON": str(python),
        "SPARK_LOCAL_DIRS": str(local),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYTHONPATH": str(CHECKOUT),  # of this package, it imports modules that need little
    }


def run(command: Sequence[str | Path], environment: Mapping[str, str]) -> tuple[float, str]:
    """Run a command, and return its seconds from start to end, and its output.

    Raises:
        ClickException: it failed.
    """
    os.sync()  # else the disk would still be busy with earlier writes
    started = time.perf_counter()
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        raise click.ClickException(f"{' '.join(map(str, command))} failed: {process.stderr[-4000:]}")
    return time.perf_counter() - started, process.stdout
