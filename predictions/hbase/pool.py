"""A pool of connections: each is lent to one thread at a time, and a forked process uses none of its parent's."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakSet

IDLE_SECONDS = 30.0  # an unused connection is closed after that


class Lendable(Protocol):
    """A connection that a pool can lend."""

    def adopt(self) -> None:
        """Hand it over to the calling thread."""

    def close(self) -> None:
        """Close it."""

    def forget(self) -> None:
        """Drop it in a forked process: it belongs to the parent process."""


T = TypeVar("T", bound=Lendable)


class Pool(Generic[T]):
    """Keeps as many connections as were needed at once, until they are idle for too long.

    It uses no lock, so a fork cannot inherit a locked one: the two ends of a deque are thread-safe.

    Args:
        make: opens a connection.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._idle: deque[tuple[float, T]] = deque()  # with the time of return, the latest at the right
        self._is_closed = False
        _pools.add(self)

    @contextmanager
    def lend(self) -> Iterator[T]:
        """Lend a connection to the calling thread; an exception while it is lent closes it.

        Raises:
            RuntimeError: the pool is closed.
        """
        if self._is_closed:
            raise RuntimeError("the pool is closed; make a new one")
        try:
            _returned, lent = self._idle.pop()
        except IndexError:
            lent = self._make()
        lent.adopt()
        try:
            yield lent
        except BaseException:
            lent.close()
            raise
        self._take_back(lent)

    def _take_back(self, lent: T) -> None:
        now = time.monotonic()
        self._idle.append((now, lent))
        try:
            while self._is_closed or self._idle[0][0] < now - IDLE_SECONDS:
                self._idle.popleft()[1].close()
        except IndexError:  # another thread took the last one
            pass

    def close(self) -> None:
        """Close all connections, those that are lent when they come back."""
        self._is_closed = True
        while self._idle:
            self._idle.popleft()[1].close()

    def after_fork(self) -> None:
        """Drop, in a forked process, the connections that belong to the parent process."""
        inherited, self._idle = self._idle, deque()
        for _returned, connection in inherited:
            connection.forget()


_pools: WeakSet[Pool[Any]] = WeakSet()


def _after_fork() -> None:
    for pool in list(_pools):
        pool.after_fork()


os.register_at_fork(after_in_child=_after_fork)
