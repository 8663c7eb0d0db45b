"""Load one part into the cluster's HBase, batch by batch: what is sent again, the rate, and what ends the load."""

import subprocess
import sys
import time
import uuid
from dataclasses import replace
from itertools import chain, pairwise

import pytest
from conftest import CHECKOUT

from loader import batches
from loader import part as puts
from loader.checkpoints import Checkpoint, Checkpoints
from loader.part import load_part
from loader.plan import Plan
from predictions.errors import RefusedError
from predictions.formats.document import to_file
from predictions.formats.record_line import join_lines
from predictions.formats.row_key import row_keys
from predictions.hbase.connection import Connection, RejectedError

pytestmark = pytest.mark.cluster

KEYS = sorted(row_keys([b"order-%03d" % number for number in range(300)]))
DATA = join_lines(b"%b\t1\t0.83\t4907185d0406025b\t1795366709000\t\\N" % key for key in KEYS)


@pytest.fixture
def connection(server):
    with Connection(server) as connection:
        yield connection


@pytest.fixture
def plan(connection, server):
    """The plan of a load of a release with one part; its tables exist."""
    name = f"test_{uuid.uuid4().hex[:8]}"
    plan = Plan(server, name, "20261122T154500Z", "load", [])
    connection.create_table(name, "r")
    connection.create_table(plan.table, "p")
    yield plan
    for table in (name, plan.table):
        connection.delete_table(table)


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(batches, "BATCH_BYTES", 2000)


def load(connection, plan, report=lambda _checkpoint: None, data=DATA):
    return load_part(connection, plan, 0, lambda offset: [data[offset:]] if offset < len(data) else [], report)


def keys_in(connection, plan):
    return list(chain.from_iterable(connection.keys(plan.table, b"", b"")))


def failing(put_rows, batch, error):
    """Wrap `put_rows` so that it raises instead of sending one batch, given by its number."""
    batches_so_far = []

    def put(self, table, rows, timestamp):
        batches_so_far.append(rows)
        if len(batches_so_far) == batch:
            raise error
        put_rows(self, table, rows, timestamp)

    return put


def test_a_batch_that_was_not_acknowledged_is_sent_again_and_none_before_it(
    connection, plan, small_batches, monkeypatch
):
    reports = []
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "put_rows", failing(Connection.put_rows, 3, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            load(connection, plan, reports.append)
    assert len(reports) == 3  # the start, and two batches
    assert Checkpoints(connection, plan).read(0) == reports[-1]
    assert load(connection, plan, reports.append).rows == len(KEYS)
    assert reports[3] == reports[2]
    assert keys_in(connection, plan) == KEYS


def test_rows_sent_without_a_checkpoint_are_sent_again(connection, plan, small_batches, monkeypatch):
    def fail(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", fail)
        with pytest.raises(KeyboardInterrupt):
            load(connection, plan)
    assert 0 < len(keys_in(connection, plan)) < len(KEYS)
    assert Checkpoints(connection, plan).read(0) == Checkpoint()
    assert load(connection, plan).rows == len(KEYS)
    assert keys_in(connection, plan) == KEYS


def test_a_loaded_part_is_only_read(connection, plan, monkeypatch):
    checkpoint = load(connection, plan)
    monkeypatch.setattr(Connection, "put_rows", lambda *_arguments: pytest.fail("a loaded part was written again"))
    assert load(connection, plan) == checkpoint == Checkpoint(len(DATA), len(KEYS), checkpoint.id_digest, 0, True)


def test_too_many_rejected_rows_end_the_load(connection, plan, small_batches, monkeypatch):
    def refuse(*_arguments):
        raise RejectedError("HBase refuses: AccessDeniedException", "AccessDeniedException")

    monkeypatch.setattr(puts, "MAX_REJECTED", 3)
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "put_rows", refuse)
        with pytest.raises(RefusedError, match=r"^part-00000: HBase has rejected \d+ rows, .* AccessDeniedException; "):
            load(connection, plan)
    checkpoint = load(connection, plan)  # once HBase accepts the rows
    assert (checkpoint.rejected, checkpoint.rows) == (0, len(KEYS))


def test_a_rate_is_kept_and_evenly(connection, plan):
    """The load does not send everything at once and then pause: this would slow down lookups meanwhile."""
    reports, started = [], time.monotonic()
    paced = Plan(**vars(plan) | {"rate": 100.0})
    load(connection, paced, lambda checkpoint: reports.append((time.monotonic() - started, checkpoint.rows)))
    assert reports[-1][1] == len(KEYS)
    assert reports[-1][0] >= (len(KEYS) - 100) / 100
    assert all(later[1] - earlier[1] <= 100 for earlier, later in pairwise(reports))


def test_a_checkpoint_is_the_last_one_written_whatever_the_clocks_say(connection, plan, monkeypatch):
    """Tasks run on machines whose clocks differ."""
    later = time.time_ns() + 3600 * 10**9
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: later)
        Checkpoints(connection, plan).write(0, Checkpoint(10, 1))
    checkpoints = Checkpoints(connection, plan)
    assert checkpoints.read(0) == Checkpoint(10, 1)
    checkpoints.write(0, Checkpoint(20, 2))
    assert Checkpoints(connection, plan).read(0) == Checkpoint(20, 2)


def test_a_pipe_typed_by_hand_loads_a_part(connection, plan, tmp_path):
    (tmp_path / "plan.json").write_bytes(to_file(plan))
    (tmp_path / "part-00000").write_bytes(DATA)
    command = f"{sys.executable} -m loader {tmp_path}/plan.json part-00000 < {tmp_path}/part-00000"
    for loaded in (0, len(KEYS)):  # the second time, all rows are loaded already
        process = subprocess.run(["bash", "-c", command], cwd=CHECKOUT, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        progress = process.stdout.splitlines()
        assert (progress[0], progress[-1]) == (f"part-00000\t{loaded}", f"part-00000\t{len(KEYS)}")
        assert process.stderr == f"reporter:counter:predictions,loaded,{len(KEYS)}\n"
    assert keys_in(connection, plan) == KEYS


def test_a_pipe_of_another_part_is_refused_in_one_line(plan, tmp_path):
    (tmp_path / "plan.json").write_bytes(to_file(replace(plan, points=["8000"])))
    command = [sys.executable, "-m", "loader", f"{tmp_path}/plan.json"]
    for name, message in (("part-00001", "belongs to another part"), ("part-1", "part-1: not a part file")):
        process = subprocess.run([*command, name], input=DATA, cwd=CHECKOUT, capture_output=True)
        [line] = process.stderr.decode().splitlines()
        assert (process.returncode, line.startswith("loader: "), message in line) == (2, True, True)
