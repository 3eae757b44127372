"""The attention of a model, as far as its paths go by it, on one device."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from ..attention import PREFIX, EncodingSite
from ..attention.cached import ENCODED, STATE
from ..attention.choice import Choice, Prospect, choose
from ..attention.entry import are_bounded
from ..benchmarking import reaching
from ..encodings import ENCODINGS, Geometry, PositionalEncoding, create, options_of
from ..encodings.naming import BEFOREHAND, STAGES
from ..encodings.widths import packed
from ..patching import Patch
from ..variants import name_of, own_options

PASSES = ("forward", "backward", "decoding")
IN_ATTENTION = tuple(stage for stage in STAGES if stage not in BEFOREHAND)
"""Stages of which an encoding has one or more if the attention function serves it."""


class Site(nn.Module):
    """The least of an attention module: what attention functions read of one. Without an encoding it is a stock one."""

    def __init__(self, encoding: PositionalEncoding | None, groups: int, config: PretrainedConfig):
        super().__init__()
        self.encoding, self.num_key_value_groups, self.is_causal, self.config = encoding, groups, True, config
        if encoding is not None:
            self.posenc_site = EncodingSite(self, "encoding")
        self.eval()


@dataclasses.dataclass(frozen=True)
class Subject:
    """Attention layers of one shape.

    Args:
        config: of the model. backend: the attention that it is loaded with. geometry: what encodings know about it.
        window: keys that a query sees in the sliding layers, where there are any.
        softcap: of the scores. sinks: every head has a learned one.
    """

    config: PretrainedConfig
    backend: str
    geometry: Geometry
    window: int | None
    softcap: float | None
    sinks: bool
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, record: Patch, dtype: torch.dtype, device: torch.device, backend: str | None = None) -> Subject:
        """The shape of the model of `record`, which may be without numbers.

        Args:
            backend: in place of the one that it has.
        """
        backend = backend or record.live_backend
        config, (first, attention) = record.native_config(), next(iter(record.attentions.items()))
        slides = "sliding_attention" in record.architecture.layer_types(config)
        masks = copy.deepcopy(config)
        masks._attn_implementation = PREFIX + backend
        return cls(
            config=masks,
            backend=backend,
            geometry=record.geometry(first),
            window=config.sliding_window if slides else None,
            softcap=getattr(attention, "attn_logit_softcapping", None),
            sinks=hasattr(attention, "sinks"),
            dtype=dtype,
            device=device,
        )

    def encoding(self, label: str, length: int, native: int) -> PositionalEncoding:
        """The encoding that `yarn:factor=4` asks for, in a model trained for `native` tokens that is to reach `length`.

        Raises:
            ValueError: this model cannot have it.
        """
        name = name_of(label)
        geometry = dataclasses.replace(self.geometry, max_positions=native)
        by_length = options_of(ENCODINGS[name]).get("step", 0) is None
        few = {"step": native} if by_length else {}  # sets of frequencies: each is computed on its own
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return create(name, geometry, **reaching(name, length, native) | few | own_options(label)).to(self.device, self.dtype)

    def site(self, encoding: PositionalEncoding | None) -> Site:
        return Site(encoding, self.geometry.num_heads // self.geometry.num_kv_heads, self.config)

    def states(self, batch: int, length: int, device: torch.device | str = "cpu") -> list[Tensor]:
        """Random queries [B,H,L,D], keys and values [B,G,L,D], in the dtype of the model."""
        g, generator = self.geometry, torch.Generator(device).manual_seed(1)
        heads = (g.num_heads, g.num_kv_heads, g.num_kv_heads)
        return [torch.randn(batch, n, length, g.head_dim, generator=generator, device=device, dtype=self.dtype) for n in heads]

    def state(self, encoding: PositionalEncoding, k: Tensor) -> Tensor | None:
        """What an encoding with states says of the tokens of keys [B,G,L,D], from random inputs."""
        if not encoding.has("state"):
            return None
        x = torch.randn(len(k), k.shape[2], self.geometry.hidden_size, generator=torch.Generator().manual_seed(3)).to(k)
        return encoding.state(x, torch.arange(k.shape[2], device=k.device).expand(len(k), -1))

    def handed(
        self, encoding: PositionalEncoding, q: Tensor, k: Tensor, pos: Tensor, cached: bool = False
    ) -> tuple[Tensor, dict[str, Any]]:
        """Keys as the attention function is handed them, and what it is handed beside the numbers of the heads.

        Args:
            pos: of the keys, [1 or B,K]. cached: they come out of a cache, with their states.
        """
        state, queries = self.state(encoding, k), q.shape[2]
        more = {} if state is None else {STATE: state if encoding.caches_state and not cached else state[:, :, -queries:]}
        if not cached:
            return k, more
        key = encoding.cached_key(k, pos if encoding.axes == 1 else pos.expand(encoding.axes, -1, -1)).to(k.dtype)
        if state is not None and encoding.caches_state:
            key = torch.cat((key, packed(state, key.shape[1], key.dtype)), -1)
        return key, more | {ENCODED: True}

    def choice(self, encoding: PositionalEncoding, length: int, what: str = "forward") -> Choice:
        """The path of a pass over a text of so many tokens."""
        pos = torch.arange(length, device=self.device)[None]
        regional = are_bounded(encoding.regions(pos[:, -1:] if what == "decoding" else pos, pos))
        plain, on_cpu, learning = self.softcap is None and not self.sinks, self.device.type == "cpu", what == "backward"
        return choose(encoding, Prospect(self.backend, self.device.type, self.dtype, regional, learning, tileable=on_cpu and plain))
