import os
import threading
from contextlib import ExitStack

import pytest

from predictions.hbase import pool
from predictions.hbase.pool import Pool


class Lent:
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
def made():
    return []


@pytest.fixture
def lent(made):
    def make():
        made.append(Lent())
        return made[-1]

    return Pool(make)


def test_a_returned_connection_is_lent_again(lent, made):
    def borrow():
        with lent.lend():
            pass

    borrow()
    thread = threading.Thread(target=borrow)
    thread.start()
    thread.join()
    assert [each.owners for each in made] == [[threading.get_ident(), thread.ident]]
    with lent.lend() as one, lent.lend() as other:
        assert [one, other] == made


def test_an_error_closes_the_connection_and_it_is_not_lent_again(lent, made):
    with pytest.raises(KeyboardInterrupt), lent.lend():
        raise KeyboardInterrupt
    assert made[0].is_closed
    with lent.lend() as other:
        assert other is not made[0]


def test_idle_connections_are_closed(lent, made, monkeypatch):
    with ExitStack() as stack:
        for _count in range(3):
            stack.enter_context(lent.lend())
    monkeypatch.setattr(pool, "IDLE_SECONDS", -1.0)
    with lent.lend():
        pass
    assert [each.is_closed for each in made] == [True] * 3


def test_a_closed_pool_lends_nothing_and_closes_returned_connections(lent, made):
    with lent.lend():
        with lent.lend():
            pass
        lent.close()
        assert [each.is_closed for each in made] == [False, True]
    assert made[0].is_closed
    with pytest.raises(RuntimeError, match="closed"), lent.lend():
        pass


def test_a_forked_process_forgets_its_parents_connections(lent, made):
    with lent.lend():
        pass
    child = os.fork()
    if child == 0:
        code = 9
        try:
            with lent.lend() as own:
                code = 0 if made[0].is_forgotten and not made[0].is_closed and own is made[1] else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with lent.lend() as kept:
        assert kept is made[0]
        assert not kept.is_forgotten
