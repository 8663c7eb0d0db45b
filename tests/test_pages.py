"""README and docs: commands exist with their options, links have targets, and snippets do what the text says."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import uuid
from itertools import groupby

import click
import pytest
from conftest import CHECKOUT, make_orders
from inprocess import call
from pages import PAGES, as_script, blocks_of

from predictions.cli.main import cli
from predictions.hbase.connection import Connection
from predictions.settings import load_settings
from predictions.storage import Storage

COMMANDS = [
    pytest.param(line, id=f"{page.name}:{block.line + number}")
    for page in PAGES
    for block in blocks_of(page)
    if block.language in ("sh", "cron")
    for number, line in enumerate(block.text.splitlines())
    if re.search(r"\bpredictions [a-z-]", line.partition("#")[0])
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_exists_with_its_options(line):
    words = shlex.split(line.partition(" #")[0], posix=True)
    start = next(index for index, word in enumerate(words) if word.rpartition("/")[2] == "predictions")
    stop = next((index for index, word in enumerate(words) if index > start and word in "&|>;"), len(words))
    context = cli.make_context("predictions", words[start + 1 : stop], resilient_parsing=False)
    name, command, arguments = cli.resolve_command(context, [*context._protected_args, *context.args])
    assert command.make_context(name, arguments, parent=context)


def test_a_command_that_does_not_exist_would_be_noticed():
    for line in ("predictions exprt", "predictions load --way puts", "predictions activate --force"):
        with pytest.raises(click.UsageError):
            test_every_command_exists_with_its_options(line)


def test_every_link_leads_to_a_file_and_a_heading():
    missing = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", page.read_text()):
            path, _hash, anchor = "".join(target).partition("#")
            if "://" in path:
                continue
            file = (page.parent / path).resolve() if path else page
            if not file.exists() or (anchor and anchor not in _anchors(file)):
                missing.append(f"{page.name}: {''.join(target)}")
    assert missing == []


def _anchors(page):
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_fits_on_a_page():
    assert len((CHECKOUT / "README.md").read_text().splitlines()) <= 130


def shims(folder):
    """Write commands `predictions`, `python` and `python3` that run this checkout into a folder."""
    folder.mkdir(parents=True)
    for name, command in (("predictions", "-m predictions "), ("python", ""), ("python3", "")):
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} {command}"$@"\n')
        (folder / name).chmod(0o755)


def run(script, folder, **environment):
    """Run a shell script and return its output."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"} | environment
    command = ["bash", "-euc", script]
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_the_pipe_of_the_readme_gives_the_same_bytes(tmp_path):
    settings = make_orders(tmp_path) / "predictions.toml"
    settings.write_text(re.sub(r"(?m)^name = .*", 'name = "flights"', settings.read_text()))
    for name in ("mapper.py", "reducer.py"):
        (tmp_path / name).symlink_to(CHECKOUT / name)
    shims(tmp_path / ".venv" / "bin")
    blocks = blocks_of(CHECKOUT / "README.md")
    first = next(number for number, block in enumerate(blocks) if "--storage var/local export" in block.text)
    assert run(as_script(blocks[first : first + 2]), tmp_path).splitlines()[-1] == "the same"


def steps(blocks):
    """Yield the steps of a page's blocks: a command of ours as its words, Python and other shell lines as text."""
    for block in blocks:
        if block.language == "python":
            yield block.text
            continue
        for ours, lines in groupby(block.text.splitlines(), lambda line: line.startswith("predictions ")):
            commands = list(lines)
            yield from map(shlex.split, commands) if ours else [["bash", "-euc", "\n".join([*commands, "pwd"])]]


def test_the_page_of_models(full, tmp_path, monkeypatch):
    """Each snippet, in order, in this process; those of a registry with --full, as MLflow takes long to import."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/registry")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setattr(sys, "path", list(sys.path))
    shims(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    blocks = [block for block in blocks_of(CHECKOUT / "docs" / "models.md") if block.language in ("sh", "python")]
    printed = ""
    for step in steps([block for block in blocks if full or block.mark != "mlflow"]):
        if isinstance(step, str):
            exec(compile(step, "models.md", "exec"), {})
        elif step[0] == "bash":
            os.chdir(subprocess.run(step, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        else:
            ended = call(step[1:], os.getcwd())
            assert ended.returncode == 0, ended.stderr
            printed += ended.stdout + ended.stderr
    for line in (
        "all are trusted",
        "region: text as str",
        "region: text as category",
        "visits: integer as float64",
        "on a holdout of 360 records",
    ):
        assert line in printed
    assert printed.count("scored 2,000 records, 0 failed") == (6 if full else 5)
    assert ("(version 1)" in printed) == full


@pytest.mark.cluster
def test_the_tutorial(cluster, tmp_path):
    """From a user's own table to served predictions, by the tutorial's commands."""
    (tmp_path / "examples").symlink_to(CHECKOUT / "examples")
    shims(tmp_path / "bin")
    name, thrift, web = (
        f"test_{uuid.uuid4().hex[:8]}",
        cluster.config.port("thrift"),
        cluster.config.port("namenode_web"),
    )
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "CLUSTER_DIR": str(cluster.config.folder),
        "PREDICTIONS_NAME": name,
        "PREDICTIONS_HBASE_THRIFT": f"127.0.0.1:{thrift}",
        "PREDICTIONS_HBASE_REGIONS": "1",  # a table of one region is made without a JVM
        "PREDICTIONS_HADOOP_STORAGE": f"webhdfs://127.0.0.1:{web}/tests",
    }
    blocks = [block for block in blocks_of(CHECKOUT / "docs" / "tutorial.md") if block.mark != "set-up"]
    postgresql = tempfile.mkdtemp(dir="/var/tmp")  # which another user may enter: PostgreSQL does not run as root
    os.chmod(postgresql, 0o755)
    script = as_script(blocks).replace("/var/tmp/shop-postgresql", f"{postgresql}/data")
    try:
        printed = run(script, tmp_path, **environment)
    finally:
        if os.path.exists(f"{postgresql}/data"):
            subprocess.run([sys.executable, CHECKOUT / "examples" / "postgresql.py", "stop", f"{postgresql}/data"])
        shutil.rmtree(postgresql)
        Storage(environment["PREDICTIONS_HADOOP_STORAGE"], name).delete(f"/tests/{name}")
        settings = load_settings(tmp_path / "shop" / "predictions.toml")
        server = settings.hbase.model_copy(update={"thrift": environment["PREDICTIONS_HBASE_THRIFT"]}).server()
        with Connection(server) as connection:
            for table in connection.tables():
                if table.decode().partition(".")[0] == name:
                    connection.delete_table(table.decode())
    statuses = re.findall(r'^\{"id": "([\w-]+)", "status": "(\w+)"', printed, re.MULTILINE)
    assert statuses == [("A-1900", "fresh"), ("A-1900", "changed"), ("A-1900", "fresh"), ("A-1", "fresh")]
    assert "A-1900 is paid late with a probability of" in printed
    assert re.search(r"^no-such-order +missing", printed, re.MULTILINE)
