"""Work on several threads, with the answers in order. NumPy, torch and reading files let go of the interpreter's lock."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

A = TypeVar("A")
T = TypeVar("T")


def map_in_order(function: Callable[[A], T], items: Iterable[A], threads: int = 2) -> Iterator[T]:
    """function of each item. The caller's thread takes the items; at most threads + 1 are in work or waiting."""
    with ThreadPoolExecutor(threads) as pool:
        yield from _in_order(pool, function, items, threads)


def one_thread_each(function: Callable[[A], T], items: Iterable[A]) -> Iterator[T]:
    """`map_in_order` by a worker per core, each of which computes alone, as single products of torch or NumPy are too small to share.

    As many answers wait at a time as there are workers, times four. NumPy's products have one thread everywhere meanwhile.
    """
    import torch

    before, n_workers = torch.get_num_threads(), os.cpu_count() or 1
    alone = ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(1,))
    with _libraries().limit(limits=1, user_api="blas"), alone as pool:
        try:
            yield from _in_order(pool, function, items, 4 * n_workers)
        finally:
            torch.set_num_threads(before)


@cache
def _libraries() -> ThreadpoolController:
    """That NumPy computes with. Looking for them takes 12 ms."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _in_order(pool: ThreadPoolExecutor, function: Callable[[A], T], items: Iterable[A], ahead: int) -> Iterator[T]:
    waiting: deque[Future[T]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
