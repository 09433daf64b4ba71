"""Work in batches that get smaller when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
# What PyTorch writes into other errors than `OutOfMemoryError`: on a CPU, on a GPU, in its matrix library.
NO_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in NO_MEMORY)


class Batches:
    """How many sequences go through the model together. Half as many from then on, whenever memory runs out.

    Args:
        what: for the user: what is done with them.

    Attributes:
        size: sequences per batch.
        first: what `size` was at first.
    """

    def __init__(self, size: int, what: str) -> None:
        self.size, self.what, self.first = size, what, size

    @property
    def tight(self) -> bool:
        """Whether memory has run out before."""
        return self.size < self.first

    def shrink(self, tried: int) -> None:
        """Half of what was tried, from now on.

        Call it after the error was handled: that keeps the tensors of the failed attempt alive.
        """
        self.size = max(1, min(tried, self.first) // 2)
        torch.cuda.empty_cache()
        print(f"out of memory in {self.what}: going on with {self.size} sequences at a time", flush=True)

    def run(
        self,
        items: Sequence[Item],
        work: Callable[[Sequence[Item], int], list[Result]],
        whole: bool = False,
    ) -> list[Result]:
        """Calls `work(batch, position of its first item)` for one batch after the other.

        Args:
            whole: all items are one batch, as long as memory has never run out.

        Returns:
            all results in one list.

        Raises:
            RuntimeError, MemoryError: from `work`, unless memory ran out for several items.
        """
        results: list[Result] = []
        done = 0
        while done < len(items):
            size = len(items) if whole and not self.tight else self.size
            batch = items[done : done + size]
            try:
                results += work(batch, done)
                done += len(batch)
                continue
            except (MemoryError, RuntimeError) as error:
                if len(batch) == 1 or not out_of_memory(error):
                    raise
            self.shrink(len(batch))
        return results

    def longest_first(
        self,
        items: Sequence[Item],
        length: Callable[[Item], int],
        work: Callable[[Sequence[Item], int], list[Result]],
    ) -> list[Result]:
        """As `run`, one result per item in the order of the items, though the longest are done first.

        Items of similar length then share a batch, which saves padding, and lack of memory shows at once.
        """
        order = sorted(range(len(items)), key=lambda place: -length(items[place]))
        results = self.run([items[place] for place in order], work)
        by_place = dict(zip(order, results, strict=True))
        return [by_place[place] for place in range(len(items))]
