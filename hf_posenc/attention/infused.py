"""What queries and keys are projected from: positions are put into the input of those projections, and kept from the values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .entry import EncodingSite
from .places import here
from .unrounded import without_autocast


class Columns(NamedTuple):
    """Which of the columns that a projection makes become queries or keys.

    Args:
        lengths: of the stretches of one period, in turn those that do and those that do not. The period comes again and again.
    """

    lengths: tuple[int, ...]

    @classmethod
    def of(cls, chosen: Sequence[bool]) -> Columns:
        """Of all columns, those that are `chosen`."""
        total = len(chosen)
        period = next(n for n in range(1, total + 1) if total % n == 0 and all(chosen[i] == chosen[i % n] for i in range(n, total)))
        runs = [(key, len(list(run))) for key, run in groupby(chosen[:period])]
        return cls((*(() if runs[0][0] else (0,)), *(length for _, length in runs)))

    @property
    def are_all(self) -> bool:
        return len(self.lengths) == 1

    def pick(self, chosen: Tensor, others: Tensor) -> Tensor:
        """These columns of `chosen` [...,C], and those of `others` [...,C] beside them."""
        pieces = [x.unflatten(-1, (-1, sum(self.lengths))).split(self.lengths, -1) for x in (chosen, others)]
        return torch.cat([pieces[i % 2][i] for i in range(len(self.lengths))], -1).flatten(-2)


Projections = dict[str, Columns]
"""The columns that become queries or keys, by the path of each projection within its attention."""


class InfusedProjection:
    """Hooks on one projection in an attention, or on what has taken its place (PEFT, quantisation).

    A projection that makes values too, or anything else, is asked about both inputs at once, in one batch.

    Args:
        attention: the module. path: of the projection within it.
        columns: those that become queries or keys.
        site: where the encoding is found.
        around: makes a hook fit for attention of this family.
    """

    def __init__(self, attention: nn.Module, path: str, columns: Columns, site: EncodingSite, around: Callable[[Any], Any]):
        self.attention, self.path, self.columns, self.site, self.around = attention, path, columns, site, around
        self.projection: nn.Module | None = None
        self.handles: list[Any] = []
        self.follow()

    def follow(self) -> None:
        """Sit on what is in the place of the projection now."""
        projection = self.attention.get_submodule(self.path)
        if projection is self.projection:
            return
        if torch.compiler.is_compiling():
            raise RuntimeError(
                f"{self.path} of {type(self.attention).__name__} has been replaced: call the model once before it is compiled"
            )
        self.remove()
        self.projection = projection
        self.handles.append(projection.register_forward_pre_hook(self.around(self.before)))
        if not self.columns.are_all:
            self.handles.append(projection.register_forward_hook(self.around(self.after)))

    def remove(self) -> None:
        """Undo it, as handles of hooks do."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def before(self, projection: nn.Module, args: tuple) -> tuple:
        x, *others = args
        pos = self.site.settled.of({}).to(x.device)
        with without_autocast(x.device):
            infused = here(self.site.encoding, pos).infuse(x, pos)
        return infused if self.columns.are_all else torch.cat((infused, x)), *others

    def after(self, projection: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self.columns.pick(*output.chunk(2))


class Followed:
    """Before a backbone runs: let hooks on its projections follow those."""

    def __init__(self, infused: Sequence[InfusedProjection]):
        self.infused = infused

    def __call__(self, backbone: nn.Module, args: tuple) -> None:
        for each in self.infused:
            each.follow()
