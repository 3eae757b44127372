"""Which projections an attention makes its queries and keys with: found by a trial, whatever they are called and however they are joined.

The attention of a twin is run on made-up input. What its modules make of that input is cut off from it, and gradients say which of these
numbers queries, keys and values depend on. Where one projection makes both, its columns are asked for again at the size of the model, in
a copy of the attention without weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..attention.cached import arguments_of, by_name
from ..attention.infused import Columns, Projections
from ..attention.probe import Handed
from .configuration import written
from .record import Patch
from .running import called, forward, having, is_trying, nowhere, tokens, trying
from .twin import twin_of

OF_AN_INSTANCE = ("forward", "_hf_hook", "_old_forward", "_compiled_call_impl", "posenc_site")
"""What tools put on a module, beside what its class has put there."""

_found: dict[tuple, dict[int, Projections]] = {}


def projections_of(record: Patch) -> dict[int, Projections]:
    """The projections of each layer of `record`; looked for once for each class and configuration.

    Raises:
        ValueError: the queries and keys of this family are not made by such.
    """
    backend = record.architecture.seam.tried_with(record.live_backend)
    key = (type(record.backbone), id(record.architecture), backend, written(record.native_config()))
    if key not in _found:
        is_twin = is_trying()
        try:
            with trying():
                _found[key] = _find(record, record if is_twin else twin_of(record))
        except ValueError:
            raise
        except Exception as error:
            raise _refusal(record, f"a trial ended in {type(error).__name__}: {error}") from error
    return _found[key]


def _refusal(record: Patch, why: str) -> ValueError:
    return ValueError(f"{called(record)} has no place for positions in what queries and keys are projected from: {why}")


@torch.enable_grad()
def _find(record: Patch, subject: Patch) -> dict[int, Projections]:
    """The projections of `record`, by a trial of `subject`, its twin."""
    attentions, looking = subject.attentions, subject.architecture.seam.looking
    with having(subject, [nowhere(subject)]), ExitStack() as hooks, looking(subject.backbone.config, attentions.values()) as seen:
        cuts = {i: Cut(attention, hooks) for i, attention in attentions.items()}
        forward(subject, {"input_ids": tokens(subject)})
    found = {}
    for i, cut in cuts.items():
        uses = _uses(cut.x, cut.pieces, seen[cut.attention])
        _check(subject, i, cut.x, uses)
        if any(use.is_mixed for use in uses.values()):
            uses = _at_full_size(record, i, cut, uses)
        found[i] = {path: Columns.of(use.queries.tolist()) for path, use in uses.items() if use.queries.any()}
    return found


class Cut:
    """Hooks within an attention that cut off what its modules make of its input, in its first call.

    Attributes:
        x: the input [1,Q,M]. call: all that the attention was given, by name.
        pieces: what was made of it [1,Q,C], by the path of the module.
    """

    x: Any = None
    call: dict[str, Any]

    def __init__(self, attention: nn.Module, hooks: ExitStack):
        self.attention, self.pieces = attention, dict[str, Tensor]()
        hooks.callback(attention.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
        for path, module in attention.named_modules():
            if module is not attention:
                hooks.callback(module.register_forward_hook(partial(self._leave, path)).remove)

    def _enter(self, attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if self.x is not None:
            return None
        call = by_name(attention, args, kwargs)
        given = call[arguments_of(attention)[0]]
        self.x = given.detach().requires_grad_()
        self.call = {name: self.x if value is given else value for name, value in call.items()}  # CTRL is given it three times
        return (), self.call

    def _leave(self, path: str, module: nn.Module, args: tuple, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor) or not args or args[0] is not self.x:
            return None
        self.pieces[path] = output.detach().requires_grad_()
        return self.pieces[path]


class Use(NamedTuple):
    """The columns that queries or keys depend on, and those that values do: [C] bool."""

    queries: Tensor
    values: Tensor

    @property
    def is_mixed(self) -> bool:
        return bool(self.queries.any()) and not bool(self.queries.all())


def _uses(x: Tensor, pieces: Mapping[str, Tensor], handed: Handed) -> dict[str, Use]:
    """What becomes of pieces, and of the input `x` on other ways: this has the path ""."""
    leaves = {"": x, **pieces}
    made, values = (_depended_on(outputs, list(leaves.values())) for outputs in ((handed.query, handed.key), (handed.value,)))
    return {path: Use(*use) for path, use in zip(leaves, zip(made, values, strict=True), strict=True)}


def _depended_on(outputs: tuple[Tensor | None, ...], leaves: list[Tensor]) -> list[Tensor]:
    """Which columns [C] of each leaf any of `outputs` depends on."""
    total = sum((x * torch.randn_like(x)).sum() for x in outputs if x is not None and x.requires_grad)
    none = [leaf.new_zeros(leaf.shape[-1], dtype=torch.bool) for leaf in leaves]
    if not isinstance(total, Tensor):
        return none
    grads = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
    return [nothing if grad is None else (grad != 0).flatten(0, -2).any(0) for nothing, grad in zip(none, grads, strict=True)]


def _check(subject: Patch, layer: int, x: Tensor, uses: Mapping[str, Use]) -> None:
    """Raise ValueError where positions cannot be put into queries and keys and kept from values."""
    width = subject.geometry(layer).hidden_size
    if x.shape[-1] != width:
        raise _refusal(subject, f"layer {layer} is given vectors of width {x.shape[-1]}, its embeddings have width {width}")
    if uses[""].queries.any() or not any(use.queries.any() for use in uses.values()):
        raise _refusal(subject, f"layer {layer} makes them of its input by more than modules of its own")
    if both := [path for path, use in uses.items() if (use.queries & use.values).any()]:
        raise _refusal(subject, f"layer {layer} makes keys and values of the same numbers, those of {', '.join(both)}")


# -- at the size of the model -------------------------------------------------------------------------------------------


def _at_full_size(record: Patch, layer: int, cut: Cut, uses: Mapping[str, Use]) -> dict[str, Use]:
    """The same for `layer` of the model itself, from what its twin was given; nothing of the model is run."""
    attention = hollow(record.attentions[layer])
    shape = *cut.x.shape[:-1], record.geometry(layer).hidden_size
    made_up = partial(torch.randn, dtype=torch.float32, device="cpu", requires_grad=True)
    x, pieces = made_up(shape), {}
    for path in (path for path, use in uses.items() if path and torch.cat(use).any()):
        owner, _, name = path.rpartition(".")
        pieces[path] = made_up(*shape[:-1], _width(attention.get_submodule(path)))
        setattr(attention.get_submodule(owner), name, Given(pieces[path]))
    config = copy.deepcopy(getattr(attention, "config", record.backbone.config))
    attention.config = config
    with record.architecture.seam.looking(config, [attention]) as seen:
        try:
            attention(**{name: x if value is cut.x else value for name, value in cut.call.items()})
        except Exception as error:  # what comes after the attention function has no weights
            if attention not in seen:
                raise _refusal(record, f"layer {layer} cannot be tried: {type(error).__name__}: {error}") from error
    return _uses(x, pieces, seen[attention])


def hollow(module: Any) -> Any:
    """A copy of `module` on the CPU in which each weight is a 1, whatever its shape: it takes no memory, and shares nothing."""
    there = object.__new__(type(module))
    nn.Module.__init__(there)
    there.training = False
    vars(there).update({name: value for name, value in vars(module).items() if name not in (*vars(there), *OF_AN_INSTANCE)})
    ones = torch.ones((), dtype=torch.float32, device="cpu")
    there._parameters = {name: None if x is None else nn.Parameter(ones.expand(x.shape)) for name, x in module._parameters.items()}
    there._buffers = {name: None if x is None else ones.to(x.dtype).expand(x.shape) for name, x in module._buffers.items()}
    there._modules = {name: child and hollow(child) for name, child in module._modules.items()}
    return there


def _width(projection: Any) -> int:
    """Columns that a projection makes: a linear layer of PyTorch, or one of any library like it, or transformers' `Conv1D`."""
    return getattr(projection, "out_features", None) or projection.nf


class Given(nn.Module):
    """Stands for a projection that has made this."""

    def __init__(self, made: Tensor):
        super().__init__()
        self.made = made

    def forward(self, x: Tensor) -> Tensor:
        return self.made
