"""A pool of connections: each is lent to one thread at a time, and none goes over into a forked process."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakSet

IDLE_SECONDS = 30.0  # after which one that nobody needs is closed


class Lendable(Protocol):
    """What can be lent."""

    def adopt(self) -> None:
        """Make the calling thread the one that it belongs to."""

    def close(self) -> None:
        """Close it."""

    def forget(self) -> None:
        """Let go of it in a forked process, where it is the parent's."""


T = TypeVar("T", bound=Lendable)


class Pool(Generic[T]):
    """As many as were ever needed at once and not idle for long.

    No lock is held at any time, so none can be left locked by a fork: a deque's ends are safe for threads.

    Args:
        make: makes one.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._idle: deque[tuple[float, T]] = deque()  # each with the time of its return, the last one at the right
        self._is_closed = False
        _pools.add(self)

    @contextmanager
    def lend(self) -> Iterator[T]:
        """Lend one to the calling thread; whatever goes wrong while it is lent closes it.

        Raises:
            RuntimeError: the pool is closed.
        """
        if self._is_closed:
            raise RuntimeError("it is closed: make a new one")
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
        except IndexError:  # another thread was faster
            pass

    def close(self) -> None:
        """Close those that are not lent, and those that are when they come back."""
        self._is_closed = True
        while self._idle:
            self._idle.popleft()[1].close()

    def after_fork(self) -> None:
        """Let go, in a forked process, of what is its parent's."""
        inherited, self._idle = self._idle, deque()
        for _returned, each in inherited:
            each.forget()


_pools: WeakSet[Pool[Any]] = WeakSet()


def _after_fork() -> None:
    for pool in list(_pools):
        pool.after_fork()


os.register_at_fork(after_in_child=_after_fork)
