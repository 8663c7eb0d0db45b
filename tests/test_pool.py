import os
import threading
from contextlib import ExitStack

import pytest

from predictions.hbase import pool
from predictions.hbase.pool import Pool


class Connection:
    """Notes what the pool does with it."""

    def __init__(self):
        self.owners = []
        self.is_closed = self.is_forgotten = False

    def adopt(self):
        self.owners.append(threading.get_ident())

    def close(self):
        self.is_closed = True

    def forget(self):
        self.is_forgotten = True


@pytest.fixture
def connections():
    """All connections that the pool has made."""
    return []


@pytest.fixture
def connection_pool(connections):
    def make():
        connections.append(Connection())
        return connections[-1]

    return Pool(make)


def test_a_returned_connection_is_lent_again(connection_pool, connections):
    def borrow():
        with connection_pool.lend():
            pass

    borrow()
    thread = threading.Thread(target=borrow)
    thread.start()
    thread.join()
    assert [connection.owners for connection in connections] == [[threading.get_ident(), thread.ident]]
    with connection_pool.lend() as first, connection_pool.lend() as second:
        assert [first, second] == connections


def test_an_error_closes_the_connection_and_it_is_not_lent_again(connection_pool, connections):
    with pytest.raises(KeyboardInterrupt), connection_pool.lend():
        raise KeyboardInterrupt
    assert connections[0].is_closed
    with connection_pool.lend() as connection:
        assert connection is not connections[0]


def test_idle_connections_are_closed(connection_pool, connections, monkeypatch):
    with ExitStack() as stack:
        for _count in range(3):
            stack.enter_context(connection_pool.lend())
    monkeypatch.setattr(pool, "IDLE_SECONDS", -1.0)
    with connection_pool.lend():
        pass
    assert [connection.is_closed for connection in connections] == [True] * 3


def test_a_closed_pool_lends_nothing_and_closes_returned_connections(connection_pool, connections):
    with connection_pool.lend():
        with connection_pool.lend():
            pass
        connection_pool.close()
        assert [connection.is_closed for connection in connections] == [False, True]
    assert connections[0].is_closed
    with pytest.raises(RuntimeError, match="closed"), connection_pool.lend():
        pass


def test_a_forked_process_forgets_its_parents_connections(connection_pool, connections):
    with connection_pool.lend():
        pass
    child = os.fork()
    if child == 0:
        code = 9
        try:
            with connection_pool.lend() as connection:
                inherited = connections[0]
                code = 0 if inherited.is_forgotten and not inherited.is_closed and connection is connections[1] else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with connection_pool.lend() as connection:
        assert connection is connections[0]
        assert not connection.is_forgotten
