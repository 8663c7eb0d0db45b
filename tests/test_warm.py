"""Before a release is served, a sample of each of its regions is read, and a failure of that does not matter."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
from conftest import make_manifest

from predictions.errors import ServiceError
from predictions.formats.manifest import Scored
from predictions.formats.row_key import split_points
from predictions.stages import activate as stage
from predictions.stages.activate import WARM_KEYS, WARM_REQUEST_KEYS, WARM_SECONDS, warm

RELEASE = "20261121T154500Z"


class Connection:
    """Records what is requested, and when the pointer is switched; each reply takes `seconds` of the clock."""

    def __init__(self, clock, seconds=0.0, error=None):
        self.events, self._clock, self._seconds, self._error = [], clock, seconds, error

    def send_rows(self, table, keys):
        self.events.append((table, list(keys)))

    def receive(self, _sent):
        self._clock.now += self._seconds
        if self._error:
            raise self._error

    @property
    def keys(self):
        return [key for _table, keys in self.events for key in keys]


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    clock.sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)
    monkeypatch.setattr(stage, "time", clock)
    return clock


@pytest.mark.parametrize(("rows", "count"), [(1, WARM_REQUEST_KEYS), (1_000_000, 5_000), (10**9, WARM_KEYS)])
def test_the_sample_is_spread_over_all_regions_and_bounded(clock, rows, count):
    connection = Connection(clock)
    assert warm(connection, "flights.1", rows) == count == len(set(connection.keys))
    assert connection.keys == sorted(connection.keys)
    assert all(len(keys) <= WARM_REQUEST_KEYS for _table, keys in connection.events)
    bounds = [b"", *split_points(4), b"g"]
    shares = [sum(first <= key < last for key in connection.keys) for first, last in pairwise(bounds)]
    assert set(shares) == {count // 4}


def test_slow_servers_are_not_asked_for_long_and_get_pauses(clock):
    connection = Connection(clock, seconds=3.0)
    assert warm(connection, "flights.1", 10**9) <= 6 * WARM_REQUEST_KEYS
    assert clock.now < WARM_SECONDS + 2 * 3.0 + 0.1
    assert clock.now == 2 * 3.0 * len(connection.events)


@pytest.mark.parametrize("error", [None, ServiceError("HBase does not answer")])
def test_a_release_is_warmed_before_the_pointer_moves_and_served_in_any_case(clock, monkeypatch, error):
    connection, lines = Connection(clock, error=error), []
    monkeypatch.setattr(stage, "Releases", lambda *_arguments: releases(connection))
    monkeypatch.setattr(stage, "Connection", lambda _server: Context(connection))
    for name, result in (("_since_export", "as many"), ("_compare", None), ("gates", []), ("mismatches", [])):
        monkeypatch.setattr(stage, name, lambda *_arguments, result=result: result)
    settings = SimpleNamespace(name="flights", hbase=SimpleNamespace(server=lambda: None), gates=None)
    assert stage.activate(settings, None, RELEASE, None, lines.append, None) == "served"
    assert connection.events[0][0] == f"flights.{RELEASE}"
    assert connection.events[-1] == "the pointer moves"
    assert ("could not be filled: HBase does not answer" in lines[-1]) is bool(error)


class Context:
    def __init__(self, connection):
        self._connection = connection

    def __enter__(self):
        return self._connection

    def __exit__(self, *_exception):
        pass


def releases(connection):
    def activate(*_arguments):
        connection.events.append("the pointer moves")
        return "served"

    return SimpleNamespace(
        require=lambda *_arguments: None,
        manifest=lambda _release: SimpleNamespace(
            accounts=[], export=SimpleNamespace(rows=64), scored=make_manifest(scored=Scored(rows=64, failed=0)).scored
        ),
        pointer=lambda: SimpleNamespace(current=None, serial=0),
        judge=lambda *_arguments: None,
        activate=activate,
    )
