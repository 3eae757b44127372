"""Every family of transformers is served with the right numbers, or refused with its reason; none computes something else silently.

Each family is one tiny random model, compared with what the stock model computes, with a mask of numbers, or with itself in other pieces.
A type that is in none of the tables is taken to be served, registered or by its structure: one that is new in transformers fails here if it
is not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
import traceback
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pytest
import torch
from families import model_class, tiny_model
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

import hf_posenc
from hf_posenc.architectures import ARCHITECTURES, Architecture
from hf_posenc.architectures.refused import REFUSED as REASONS
from hf_posenc.architectures.tables import TableArchitecture
from hf_posenc.doctor.model_types import DEFAULTS, causal_types
from hf_posenc.patching import Patch, Request, apply, patch_of, proof
from hf_posenc.patching.twin import small

TOKENS = 12
SAID = {name: why for name, why in REASONS.items() if name in causal_types()}
REFUSED: dict[str, str] = {
    **{why: " ".join(name for name in SAID if SAID[name] == why and name in causal_types()) for why in SAID.values()},
    "biases of its own": "inkling2_loop_text inkling2_text",
    "blocks of keys, by default": "big_bird",
    "several stacks around the text": "blt mllama",
}
UNBUILT = {
    "needs the library timm": "gemma3n",
    "its default configuration is not valid": "gemma4_assistant gemma4_unified_assistant qwen4_exp",
    "its configuration has two texts": "musicgen musicgen_melody",
}


def listed(table: dict[str, str]) -> list[str]:
    return [model_type for types in table.values() for model_type in types.split()]


MASKS_WITHOUT_NUMBERS = {"bloom", "doge", "mpt", "mvp", "openai-gpt", "trocr", "xglm"}
"""Types whose mask says what is seen, and nothing more, or the same for all heads."""
OF_THE_NATIVE = ("r_proj",)
"""Parameters outside of the slot that only a native encoding reads (Inkling)."""
BUILT = [name for name in causal_types() if name not in listed(UNBUILT)]
SERVED = [name for name in BUILT if name not in listed(REFUSED)]


def some(words: list[str], salt: str, share: int = 4) -> list[Any]:
    """One in `share` now, others in each test (`salt`), and the rest with the slow tests: for what takes its time and rarely differs."""
    chosen = {word for word in words if hashlib.sha256(f"{salt} {word}".encode()).digest()[0] % share == 0}
    return [word if word in chosen else pytest.param(word, marks=pytest.mark.slow) for word in words]


def test_nothing_is_refused_twice():
    """A type in none of the tables is taken to be served: one that is new in transformers fails below."""
    refused = [*listed(REFUSED), *listed(UNBUILT)]
    assert len(refused) == len(set(refused)) and set(refused) <= set(causal_types())


@pytest.mark.parametrize("model_type", listed(REFUSED))
def test_refused(model_type):
    model = tiny_model(model_type)
    with pytest.raises(ValueError, match=r"not supported|cannot be patched|no layer of"):
        hf_posenc.patch(model, "alibi")


@pytest.mark.parametrize("model_type", SAID)
def test_refused_with_its_reason(model_type):
    within = model_type if model_type in causal_types() else model_type.removesuffix("_text")
    with pytest.raises(ValueError, match=SAID[model_type]):
        hf_posenc.inspect(tiny_model(within))


@pytest.mark.parametrize("model_type", some(BUILT, "twin"))
def test_a_twin_is_small(model_type):
    """That of the default configuration, at its full depth."""
    config = small(AutoConfig.for_model(model_type, **DEFAULTS.get(model_type, {})))
    family = model_class(model_type)
    with torch.device("meta"):
        model = family._from_config(config if isinstance(config, family.config_class) else config.get_text_config())
    assert sum(p.numel() for p in model.parameters()) < 3e7


# -- one model a family -----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Family:
    """A tiny model, and what it computes unpatched."""

    model: PreTrainedModel
    ids: Tensor

    @cached_property
    def stock(self) -> Tensor:
        return self()

    @torch.no_grad()
    def __call__(self, ids: Tensor | None = None, **inputs: Any) -> Tensor:
        return self.model(input_ids=self.ids if ids is None else ids, **{"use_cache": False} | inputs).logits

    @property
    def record(self) -> Patch:
        return patch_of(self.model)

    @property
    def is_table(self) -> bool:
        return isinstance(self.record.architecture, TableArchitecture)

    @property
    def native(self) -> str:
        if not self.is_table and not self.record.architecture.rotates:
            pytest.skip("what it adds is no encoding of ours")
        return "learned" if self.is_table else self.record.architecture.native_name

    @property
    def positional(self) -> tuple[int, ...]:
        """The layers that look at the native encoding."""
        architecture = self.record.architecture
        return tuple(i for i, attention in self.record.attentions.items() if not architecture.rotates or architecture.uses_slot(attention))

    @property
    def takes_positions(self) -> bool:
        return "position_ids" in inspect.signature(type(self.model).forward).parameters

    def positions(self, pos: Tensor) -> dict[str, Tensor]:
        return {"position_ids": pos.expand(len(self.ids), -1)} if self.takes_positions else {}


def same(one: Tensor, other: Tensor, within: float = 2e-4) -> bool:
    return bool((one - other).abs().max() <= within * other.abs().max())


def family_of(model: PreTrainedModel) -> Family:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return Family(model, torch.randint(5, vocabulary, (2, TOKENS), generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def built(request) -> Family:
    return family_of(tiny_model(request.param))


@pytest.fixture
def family(built) -> Iterator[Family]:
    """Whatever a test patches comes out again, bit for bit."""
    keys = list(built.model.state_dict())
    assert built.stock.isfinite().all()
    yield built
    hf_posenc.unpatch(built.model)
    assert list(built.model.state_dict()) == keys
    assert torch.equal(built(), built.stock)


every_family = pytest.mark.parametrize("built", SERVED, indirect=True, scope="module")


def some_families(salt: str, share: int = 2) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("built", some(SERVED, salt, share), indirect=True, scope="module")


def put_native(family: Family) -> None:
    """The native encoding, in the attention function or the embeddings."""
    if not family.positional:
        pytest.skip("no positions")
    try:
        apply(family.record, Request(family.native, {}, family.positional), native_slot=False)
    except ValueError as error:  # where the family does more to the embeddings before it adds its own, or to what it has turned
        assert "added to the embeddings" in str(error) or "turns queries and keys" in str(error)
        pytest.skip(str(error))


def without(family: Family) -> None:
    """No encoding in any layer."""
    hf_posenc.unpatch(family.model)
    if family.positional:
        hf_posenc.patch(family.model, "nope", layers="all")


def alibi_slopes(heads: int) -> Tensor:
    """As in the paper, for any number of heads."""
    power = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)] + [2 ** (-4 * (h + 1) / power) for h in range(0, 2 * power, 2)]
    return torch.tensor(slopes[:heads])


@every_family
def test_native_encoding_in_the_attention(family):
    put_native(family)
    assert same(family(), family.stock)


@some_families("eager")
def test_native_encoding_in_eager_attention(family):
    backbone = family.record.backbone
    before = backbone.config._attn_implementation
    backbone.set_attn_implementation("eager")
    try:
        stock = family()
        put_native(family)
        assert same(family(), stock)
    finally:
        hf_posenc.unpatch(family.model)
        backbone.set_attn_implementation(before)


@some_families("rerope")
def test_rerope_beyond_the_text(family):
    if not family.record.architecture.rotates or not family.positional or family.native != "rope":
        pytest.skip("no rotation")
    try:
        hf_posenc.patch(family.model, "rerope", window=4 * TOKENS, layers=family.positional)
    except ValueError as error:
        assert "turns queries and keys" in str(error)
        pytest.skip(str(error))
    assert same(family(), family.stock)


@every_family
def test_alibi_is_a_mask(family):
    pos = torch.arange(TOKENS)
    seen = torch.zeros(TOKENS, TOKENS).masked_fill(pos > pos[:, None], torch.finfo(torch.float32).min).expand(2, 1, -1, -1)
    where = family.positions(pos[None])
    numbers = family.model.config.model_type not in MASKS_WITHOUT_NUMBERS
    takes_masks = numbers and same(family(attention_mask=seen, **where), family.stock)
    hf_posenc.patch(family.model, "alibi", layers="all")
    heads = {family.record.geometry(i).num_heads for i in family.record.attentions}
    alibi = family()
    without(family)
    assert not same(alibi, family(), 1e-3) and (family.record.architecture.native_name == "alibi" or not same(alibi, family.stock, 1e-3))
    if takes_masks and len(heads) == 1:
        slopes = alibi_slopes(heads.pop())
        bias = -slopes[:, None, None] * (pos[:, None] - pos).abs()
        assert same(family(attention_mask=seen + bias, **where), alibi)


@every_family
def test_positions_mean_nothing_without_an_encoding(family):
    if not family.takes_positions:
        pytest.skip("takes no positions")
    without(family)
    mask = torch.ones_like(family.ids)
    pos = torch.arange(TOKENS)[None]
    record = family.record
    if any(record.architecture.query_scale(record.backbone.config, i, pos) is not None for i in record.attentions):
        pytest.skip("queries grow with their position")
    elsewhere = torch.where(pos > 0, 3 * pos + 5, 0)  # some recurrent layers begin anew at 0
    assert same(family(attention_mask=mask, **family.positions(elsewhere)), family(attention_mask=mask, **family.positions(pos)), 1e-5)


RESTARTS = {"jamba", "nemotron_h", "zamba", "zamba2"}
"""Types of which the stock model forgets its state where several tokens follow on a cache."""
INEXACT = {"dory", "nemotron_h", "zamba2"}
"""Types of which the stock model computes other numbers one token at a time."""
CACHELESS = {"openai-gpt", "recurrent_gemma"}
"""Types that cache nothing, or keep part of it to themselves."""


def decoded(family: Family) -> Tensor:
    """Logits from a few tokens at a time."""
    parts, cache, seen = [], None, 0
    for count in (5, *(1,) * 7) if family.model.config.model_type in RESTARTS else (5, 1, 1, 3, 2):
        with torch.no_grad():
            out = family.model(input_ids=family.ids[:, seen : seen + count], past_key_values=cache, use_cache=True)
        cache, seen = out.past_key_values, seen + count
        parts.append(out.logits)
    return torch.cat(parts, 1)


@every_family
@pytest.mark.parametrize("name", ["alibi", "native"])
def test_decoding_equals_evaluation(family, name):
    if family.model.config.model_type in CACHELESS | INEXACT:
        pytest.skip("nor does the stock model decode like this")
    if name == "native":
        put_native(family)
    else:
        hf_posenc.patch(family.model, name, layers="all")
    assert same(decoded(family), family(), 1e-3)


@every_family
def test_left_padding_is_invisible(family):
    if family.model.config.model_type in CACHELESS:
        pytest.skip("its recurrence reads padding")
    hf_posenc.patch(family.model, "alibi", layers="all")
    mask = torch.ones_like(family.ids)
    mask[:, :4] = 0
    alone = family(family.ids[:, 4:])
    assert same(family(family.ids * mask, attention_mask=mask)[:, 4:], alone, 1e-3)


@every_family
def test_packed_documents(family):
    def packed_and_apart() -> tuple[Tensor, Tensor]:
        return family(ids, position_ids=pos), torch.cat([family(part) for part in ids.split((5, 7), 1)], 1)

    if not family.takes_positions:
        pytest.skip("takes no positions")
    ids, pos = family.ids[:1], torch.cat((torch.arange(5), torch.arange(7)))[None]
    packs = family.record.architecture.packs
    assert packs == same(*packed_and_apart()) or family.record.architecture not in ARCHITECTURES._entries.values()
    if packs:
        hf_posenc.patch(family.model, "alibi", layers="all")
        assert same(*packed_and_apart())


@some_families("saved", 3)
@pytest.mark.parametrize(("name", "options"), [("alibi", {}), ("yarn", {"factor": 4.0})])
def test_save_and_reload(family, name, options, tmp_path):
    if type(family.model.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        pytest.skip("not even the stock checkpoint of this text model has an Auto class")
    try:
        hf_posenc.patch(family.model, name, **options)
    except ValueError as error:
        assert name == "yarn" and ("already scales its RoPE" in str(error) or "by design" in str(error))
        pytest.skip(str(error))
    logits, stock = family(), hf_posenc.inspect(family.model).stock_checkpoint
    family.model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is type(family.model)
    assert bool(hf_posenc.inspect(again).encodings) != stock
    assert same(Family(again, family.ids)(), logits, 1e-5)


@torch.no_grad()
def test_what_was_learned_comes_back_beside_numbers_that_a_family_draws_itself(tmp_path):
    """DiffLlama draws some on the CPU while the rest of it has no place yet."""
    model = hf_posenc.patch(tiny_model("diffllama"), "t5", layers="all")
    patch_of(model).placements[0].encoding.table.normal_()
    family = family_of(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(Family(again, family.ids)(), family.stock)


@every_family
def test_every_parameter_learns(family):
    def learning() -> set[str]:
        family.model(input_ids=family.ids, use_cache=False).logits.square().mean().backward()
        found = {name for name, p in family.model.named_parameters() if p.grad is not None and p.grad.any()}
        family.model.zero_grad(set_to_none=True)
        return found

    before = learning()
    hf_posenc.patch(family.model, "alibi", layers="all")
    architecture = family.record.architecture
    gone = () if architecture.rotates else (architecture.slot, *OF_THE_NATIVE)
    lost = {name for name in before - learning() if not any(part in name for part in gone)}
    if family.model.config.model_type == "phimoe":  # a router that is certain learns nothing
        lost = {name for name in lost if "router" not in name}
    assert not lost


# -- nothing by its name ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", some(BUILT, "taken"))
def test_taken_for_llama(model_type, monkeypatch):
    """A family of any kind that is said to be like Llama is refused, unless it gives the right numbers."""
    model = tiny_model(model_type)
    monkeypatch.setattr(proof, "_proven", set())
    monkeypatch.setitem(ARCHITECTURES._entries, model.config.model_type, Architecture())
    try:
        hf_posenc.patch(model, "alibi", layers="all")
    except Exception as error:
        assert isinstance(error, ValueError) or "proof" not in {frame.name for frame in traceback.extract_tb(error.__traceback__)}
        return
    family = family_of(hf_posenc.unpatch(model))
    for name, options in (("rope", {}), ("rerope", {"window": 4 * TOKENS})):
        apply(family.record, Request(name, options, family.positional), native_slot=False)
        assert same(family(), family.stock)
        hf_posenc.unpatch(model)
    test_alibi_is_a_mask(family)
