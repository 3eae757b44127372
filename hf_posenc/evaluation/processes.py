"""Several processes that share the documents of a run, started by `torchrun` or `accelerate launch`."""

from __future__ import annotations

import atexit
import os
from typing import Any, TypeVar

Item = TypeVar("Item")


class Processes:
    """The processes of this run: one, unless a launcher has started more.

    Raises:
        ValueError: the launcher announced another number of processes than have met.
    """

    def __init__(self) -> None:
        announced = int(os.environ.get("WORLD_SIZE", "1"))
        self.state: Any = None
        if announced > 1:
            import torch
            from accelerate import PartialState

            # without `cpu`, accelerate runs on as one process where there is no accelerator
            self.state = PartialState(cpu=not torch.accelerator.is_available())
            atexit.register(self.state.destroy_process_group)  # or its threads may abort a process that has done its work
            if self.state.num_processes != announced:
                raise ValueError(f"the launcher announced {announced} processes, {self.state.num_processes} have met")

    @property
    def count(self) -> int:
        """How many there are (the world size)."""
        return 1 if self.state is None else self.state.num_processes

    @property
    def rank(self) -> int:
        """The number of this one, from 0."""
        return 0 if self.state is None else self.state.process_index

    @property
    def main(self) -> bool:
        """Whether this one prints and writes."""
        return self.rank == 0

    def expect(self, count: int | None) -> None:
        """Raise ValueError where there are not `count` processes."""
        if count is not None and count != self.count:
            raise ValueError(
                f"{self.count} process(es) run and {count} were expected: start with `torchrun --nproc_per_node {count}`; on a CPU "
                "`accelerate launch --num_processes` starts only one"
            )

    def gather(self, items: list[Item]) -> list[Item]:
        """The items of all processes, in each of them."""
        if self.state is None:
            return items
        from accelerate.utils import gather_object

        return gather_object(items)

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.state is not None:
            self.state.wait_for_everyone()
