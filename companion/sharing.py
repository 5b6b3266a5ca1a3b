# Tangled from arrays, indexing: edit there, `make tangle`. sha256:e372ba3b3595
"""What threads share, and what a forked process inherits."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class once(Generic[T]):
    """A property that is computed when first asked for, and kept.

    functools.cached_property takes a lock in Python 3.11, one for all the
    objects of a class: a forked child would wait for it for ever. Here two
    threads may both compute; the value of one of them is kept for both.
    """

    def __init__(self, compute: Callable[[Any], T]):
        self.compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> T:
        if instance is None:
            return self  # type: ignore[return-value]
        value = self.compute(instance)
        return instance.__dict__.setdefault(self.name, value)


def forkable(lock: Any) -> Any:
    """The lock, which a fork waits for and a forked child finds open.

    Held by another thread in that moment, it would be closed in the child
    for ever: of the threads, only the one that forks is copied.
    """
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release,
                        after_in_child=lock.release)
    return lock
