"""Where every run of a study starts: a small model from scratch, or a pretrained one."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import hf_posenc

from ..evaluation.demo_model import resolve_model
from ..evaluation.models import check_tokenizer, load_tokenizer, read_model
from ..evaluation.reach import check_position_table
from ..variants import STOCK, patch_options
from .arguments import CompareArguments, Variant


class Base(Protocol):
    """A start: its weights, and its tokens."""

    separator: list[int]
    """Between two documents."""

    def encode(self, text: str) -> list[int]:
        """The tokens of a document."""

    def start(self, seed: int) -> Any:
        """A model with the weights that every run of this seed starts from, float32, with the encoding it comes with."""


class Scratch:
    """A small byte-level model with random weights."""

    def __init__(self, arguments: CompareArguments):
        self.arguments = arguments
        self.separator = list(b"\n\n")

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def start(self, seed: int) -> Any:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(small_config(self.arguments))
        model.loss_type = "ForCausalLM"  # transformers reads it off the name of the class, and warns where it cannot, as of GPT-2
        return model


def small_config(arguments: CompareArguments) -> Any:
    """A configuration of the family at the size asked for, without dropout."""
    default = AutoConfig.for_model(arguments.model_type)
    wanted = {
        "vocab_size": 256,
        "hidden_size": arguments.hidden_size,
        "intermediate_size": 4 * arguments.hidden_size,
        "num_hidden_layers": arguments.num_layers,
        "num_attention_heads": arguments.num_heads,
        "num_key_value_heads": arguments.num_heads,
        "head_dim": arguments.hidden_size // arguments.num_heads,
        "max_position_embeddings": arguments.train_length,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": True,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "dropout": 0.0,
    }
    known = {key: value for key, value in wanted.items() if hasattr(default, key)}
    return AutoConfig.for_model(arguments.model_type, **known)


class Pretrained:
    """A model of the hub or of this disk, with its tokenizer; documents are separated by EOS."""

    def __init__(self, name: str):
        self.path = resolve_model(name)
        self.tokenizer = load_tokenizer(self.path)
        check_tokenizer(self.tokenizer, self.start(0))
        end = self.tokenizer.eos_token_id
        self.separator = [] if end is None else [end]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def start(self, seed: int) -> Any:
        torch.manual_seed(seed)  # for the parameters that an encoding brings
        return read_model(self.path, dtype=torch.float32)


def open_base(arguments: CompareArguments) -> Base:
    """The start that was asked for."""
    return Pretrained(arguments.model) if arguments.model else Scratch(arguments)


def build(base: Base, variant: Variant, seed: int) -> Any:
    """The model that a run trains: the weights of the start, and the encoding."""
    model = base.start(seed)
    return model if variant.name == STOCK else hf_posenc.patch(model, variant.name, **patch_options(variant.options))


def weights_digest(model: Any) -> str:
    """Identifies every bit of the weights (16 hex digits)."""
    state = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        state.update(name.encode() + parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()[:16]


def has_position(model: Any, last: int) -> bool:
    """Whether the position `last` is defined for the model; a stock position table would be read past its end."""
    try:
        check_position_table(model, last + 1)
    except ValueError:
        return False
    return True
