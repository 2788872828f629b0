"""Threads that work on pieces of the points side by side.

Chunks of points are independent and small enough for the cache, so one thread a chunk keeps every
core busy with whole passes, where threads inside single products would wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """A fixed number of threads; results come in the order of the items.

    All that is shared comes back from ``map``, ``sum`` or ``cat``: another class with these three
    methods and ``number`` shares the items in another way, among processes for instance.
    """

    def __init__(self, number: int = 1) -> None:
        self.number = max(1, number)
        self._pool = ThreadPoolExecutor(self.number) if self.number > 1 else None

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        if self._pool is None:
            return [function(item) for item in items]
        return list(self._pool.map(function, items))

    def groups(self, items: Sequence[Item]) -> list[Sequence[Item]]:
        """The items in at most ``number`` contiguous groups of about equal length.

        Sums over a group are made in place by one thread, so that results depend on the number
        of threads alone, never on their timing.
        """
        pieces = min(self.number, len(items))
        edges = [round(i * len(items) / pieces) for i in range(pieces + 1)] if pieces else []
        return [items[a:b] for a, b in pairwise(edges)]

    def sum(
        self, function: Callable[[Sequence[Item]], list[Tensor]], items: Sequence[Item]
    ) -> list[Tensor]:
        """Σ ``function(group)`` over groups of the items, tensor by tensor."""
        total, *rest = self.map(function, self.groups(items))
        for other in rest:
            for part, addition in zip(total, other, strict=True):
                part += addition
        return total

    def cat(
        self, function: Callable[[Item], Tensor], items: Iterable[Item], dim: int = 0
    ) -> Tensor:
        """``function(item)`` of all items, one behind the other along an axis."""
        return torch.cat(self.map(function, items), dim)


def write(
    workers: Workers,
    function: Callable[[Sequence[Tensor], Item], None],
    tasks: Iterable[tuple[Sequence[Tensor], Item]],
) -> None:
    """``function(parts, item)`` changes the parts of an array that each task has for itself, also
    where ``map`` runs it in another process."""
    every = list(tasks)

    def written(task: tuple[Sequence[Tensor], Item]) -> Sequence[Tensor]:
        function(*task)
        return task[0]

    for (parts, _), others in zip(every, workers.map(written, every), strict=True):
        if others is not parts:
            for part, other in zip(parts, others, strict=True):
                part.copy_(other)
