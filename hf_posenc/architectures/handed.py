"""Families whose backbone makes the native encoding itself and hands it to each attention module, which can do without."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..attention.settled import Settled
from ..encodings import PositionalEncoding
from .base import Architecture
from .slots import Group, NoEncoding


class ALiBi(NoEncoding):
    """Stands for a bias that is an argument of the attention modules."""


class Without:
    """Before the attention of one layer: its arguments without the native encoding.

    Args:
        argument: which holds it, and may be None.
    """

    def __init__(self, argument: str):
        self.argument = argument

    def __call__(self, attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, kwargs | self.instead(kwargs)

    def instead(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What the module gets in the place of these arguments."""
        return {self.argument: None}


class HandedArchitecture(Architecture):
    """Each layer is served by a hook, which leaves the native encoding out. There is no slot that could hold another one."""

    native_name = "alibi"
    without: ClassVar[Without]
    """The hook."""
    packs = False

    def has_slot(self, config: PretrainedConfig) -> bool:
        return False

    def native(self, backbone: PreTrainedModel) -> nn.Module:
        return ALiBi()

    def can_hold(self, encoding: PositionalEncoding) -> bool:
        return False

    def slot_contents(
        self, backbone: PreTrainedModel, wants: dict[int, PositionalEncoding | None]
    ) -> tuple[dict[Group, PositionalEncoding | None], list[int]]:
        return {}, list(wants)

    def layer_hook(self, group: Group, settled: Settled) -> Any:
        return self.without
