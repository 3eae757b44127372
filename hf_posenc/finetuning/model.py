"""The model of a fine-tuning run: patched, proved to be so, ready to train, and described."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import nn

import hf_posenc

from ..evaluation.models import read_model
from ..evaluation.reach import check_position_table
from ..extras import extra
from ..patching import patch_of
from ..training import LongCE, chunk_loss, separate_documents
from ..variants import name_of
from .arguments import PLAIN, STOCK, CourseArguments, Settings, encoding_options
from .checks import check_finite


def load_model(path: str, settings: Settings) -> Any:
    """The model as it is.

    Raises:
        ValueError: it cannot be loaded, or has weights that are no numbers.
    """
    asked = settings.model
    chosen = {"attn_implementation": asked.attn_implementation} if asked.attn_implementation else {}
    model = read_model(path, dtype=asked.dtype, **chosen)
    check_finite(model, path)
    return model


def make_ready(model: Any, settings: Settings) -> Any:
    """The model with its new encoding, which must reach the longest input, its loss in chunks, and LoRA adapters where asked for.

    Raises:
        ValueError: the encoding cannot be had, does not reach that far, or is there already; the model cannot train in the way asked for.
    """
    apply_encoding(model, settings)
    check_position_table(model, settings.reach)
    claim_length(model, settings.longest)
    if settings.boundaries:
        _keep_apart(model)
    if settings.course.loss_chunk:
        _chunk(model, settings.course.loss_chunk, settings.weights)
    return model if settings.course.lora_rank is None else add_lora(model, settings.course)


def apply_encoding(model: Any, settings: Settings) -> None:
    """Patch the model, and see from what is live in it that this changed something."""
    asked, moving = settings.encoding, settings.moving
    if asked.encoding == STOCK:
        return
    options = encoding_options(asked)
    if moving:
        options[moving.option] = moving.value(moving.steps)  # where the schedule ends: it may begin with what the model has
    before = hf_posenc.inspect(model).fingerprint
    hf_posenc.patch(model, name_of(asked.encoding), **options)
    if hf_posenc.inspect(model).fingerprint == before:
        raise ValueError(
            f"{asked.encoding!r} is live in the model already (fingerprint {before}): leave --encoding out to train it as it is"
        )


def has_table(record: Any) -> bool:
    """Whether the model came with a learned position table."""
    return record.architecture.native_table(record.native) is not None


def claim_length(model: Any, length: int) -> None:
    """Let the configuration promise `length` tokens, where a plain RoPE is trained past what it says: evaluators cut inputs there.

    Schemes that extend the context do this themselves, and elsewhere the number is part of how the encoding is built.
    """
    record = patch_of(model)
    config = cast(Any, record.backbone).config
    plain = (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "default"
    stock = hf_posenc.inspect(model).stock_checkpoint
    if plain and stock and not has_table(record) and length > config.max_position_embeddings:
        config.max_position_embeddings = length


def _keep_apart(model: Any) -> None:
    try:
        separate_documents(model)
    except ValueError as error:
        raise ValueError(f"{error}; --boundaries cross does so") from None


def _chunk(model: Any, chunk: int, weights: LongCE | None) -> None:
    try:
        chunk_loss(model, chunk, weights)
    except ValueError as error:
        plain = "" if weights is None else f"--loss {PLAIN} "
        raise ValueError(f"{error}; {plain}--loss_chunk 0 trains with the full loss") from None


def add_lora(model: Any, asked: CourseArguments) -> Any:
    """LoRA adapters on the linear layers; the encoding's own parameters are trained and saved in full."""
    with extra("peft"):
        from peft import LoraConfig, get_peft_model
    config = LoraConfig(
        r=asked.lora_rank or 0,
        lora_alpha=asked.lora_alpha or 2 * (asked.lora_rank or 0),
        lora_dropout=asked.lora_dropout,
        target_modules=asked.lora_targets or "all-linear",
        modules_to_save=[*hf_posenc.learned_modules(model), *asked.lora_also_train] or None,
        ensure_weight_tying=bool(asked.lora_also_train) and model.config.get_text_config().tie_word_embeddings,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def context(model: Any) -> str:
    """How many tokens the model is for: what its encoding was asked to reach, "any", or what its configuration says."""
    record = patch_of(model)
    encodings = [p.encoding for p in record.placements]
    covered = len({i for p in record.placements for i in p.layers}) == len(record.attentions)
    lengths = [e.context_length for e in encodings if e.context_length]
    if not lengths and covered and all(e.any_length and not e.rotary for e in encodings):
        return "any number of tokens"
    return f"{max([record.max_positions, *lengths]):,} tokens"


def trained(model: nn.Module) -> dict[str, int]:
    """Trainable parameters by what they belong to."""
    counts = dict.fromkeys(("encoding", "LoRA", "embeddings", "norms", "the rest"), 0)
    kinds = dict(_kinds(model))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts["LoRA" if "lora_" in name else kinds.get(id(parameter), "the rest")] += parameter.numel()
    return {kind: count for kind, count in counts.items() if count}


def _kinds(model: Any) -> Iterator[tuple[int, str]]:
    """Which parameters, by id, belong to norms, embeddings and the encoding; a later entry holds."""
    record = patch_of(model)
    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    tables = [model.get_input_embeddings(), model.get_output_embeddings(), record.slot]
    learned = [getattr(record.backbone, name) for name in record.learned]
    for kind, modules in {"norms": norms, "embeddings": tables, "encoding": learned}.items():
        for module in modules:
            yield from ((id(parameter), kind) for parameter in module.parameters())


def describe_model(model: Any) -> str:
    """What is live in the model, what of it is trained, and for how many tokens it will be."""
    parameters = sum(p.numel() for p in model.parameters())
    groups = ", ".join(f"{kind} {count:,}" for kind, count in trained(model).items())
    return (
        f"{hf_posenc.inspect(model)}\n"
        f"parameters: {parameters:,}, of which {sum(trained(model).values()):,} are trained ({groups})\n"
        f"context of the result: {context(model)}"
    )
