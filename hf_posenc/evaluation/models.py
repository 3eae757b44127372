"""One loaded model, measured with several positional encodings in turn: what the recipes that do so share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file, find_adapter_config_file

from .. import inspection, patching
from ..encodings import PositionalEncoding
from ..extras import extra
from ..flags import at_least
from ..variants import STOCK, name_of, patch_options
from .corpus import Document
from .demo_model import resolve_model

Plan = Mapping[str, Mapping[str, Any]]
"""Encoding as it was asked for -> its options."""


DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


def is_device(flag: str, value: str) -> None:
    """Raise ValueError for a device that is not there."""
    try:
        if value != "auto":
            torch.empty(1, device=value).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"{flag} {value!r} cannot be used here ({str(error).splitlines()[0]}): try auto or cpu") from None


@dataclass
class ModelArguments:
    """The model."""

    model: str = field(default="demo", metadata={"help": "hub id, local path, or 'demo' (SmolLM2-135M-Instruct, no hub needed)"})
    dtype: str = field(default="auto", metadata={"help": "of the weights; auto: as saved", "choices": DTYPES})
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flex_attention, flash_attention_2"})
    device: Annotated[str, is_device] = field(default="auto", metadata={"help": "cpu, cuda, cuda:1, mps, or auto"})
    expect_processes: Annotated[int | None, at_least(1)] = field(
        default=None, metadata={"help": "fail where another number of processes share the work"}
    )
    overwrite: bool = field(default=False, metadata={"help": "measure again what is already there"})

    @property
    def path(self) -> str:
        """What `from_pretrained` takes; the demo model is fetched for it."""
        return resolve_model(self.model)


def load_tokenizer(path: str) -> Any:
    """The model's tokenizer; a name that leads nowhere comes to light here, and the message says which."""
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load the tokenizer of {path!r}: {error}") from None


def check_tokenizer(tokenizer: Any, model: Any) -> None:
    """Raise ValueError where the tokenizer's vocabulary is larger than the model's; tokens added to it (padding) may lie beyond."""
    known, rows = getattr(tokenizer, "vocab_size", 0), model.get_input_embeddings().weight.shape[0]
    if known > rows:
        raise ValueError(f"the tokenizer has {known:,} tokens and the model {rows:,}: it is not the tokenizer of this model")


def check_tokens(document: Document, model: Any) -> None:
    """Raise ValueError for a token that the model has no embedding for; on CUDA the lookup itself would abort the process."""
    largest, rows = int(document.input_ids.max()), model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise ValueError(f"{document.name} has the token {largest}, and the model has embeddings of {rows:,}: it is not of its tokenizer")


def load_model(path: str, arguments: ModelArguments) -> Any:
    """The model, in eval mode on the device that was asked for."""
    return load(path, arguments.dtype, arguments.device, arguments.attn_implementation)


def load(path: str, dtype: str = "auto", device: str = "auto", attn_implementation: str | None = None) -> Any:
    """The model of a hub id or path, in eval mode; on the accelerator where there is one and no device is named."""
    chosen = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    if device == "auto":
        device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    return read_model(path, dtype=dtype, **chosen).eval().to(device)


def read_model(path: str, **how: Any) -> Any:
    """`AutoModelForCausalLM.from_pretrained`, or that of PEFT where an adapter lies.

    Raises:
        ValueError: one of the weights is not whole; it names the file.
    """
    auto: Any = AutoModelForCausalLM
    if find_adapter_config_file(path) is not None:
        with extra("peft"):
            from peft import AutoPeftModelForCausalLM as auto
    try:
        return auto.from_pretrained(path, **how)
    except SafetensorError as error:
        folder = Path(str(cached_file(path, "config.json", local_files_only=True))).parent
        broken = [str(file) for file in sorted(folder.glob("*.safetensors")) if not is_whole(file)]
        raise ValueError(f"{', '.join(broken) or path} is damaged or cut short ({error}): copy or download it again") from None


def is_whole(file: Path) -> bool:
    """Whether a file of weights can be opened."""
    try:
        with safe_open(file, "pt"):
            return True
    except SafetensorError:
        return False


def inspect_model(model: Any) -> tuple[str | None, str | None]:
    """Fingerprint and description of the live positional encoding; (None, None) for an architecture hf_posenc does not know."""
    try:
        found = inspection.inspect(model)
    except (ValueError, TypeError, NotImplementedError):
        return None, None
    return found.fingerprint, str(found)


def live_encodings(model: Any) -> list[PositionalEncoding]:
    """The encodings of hf_posenc that are live in the model; none in a stock one or one of an architecture it does not know."""
    try:
        return [placement.encoding for placement in patching.patch_of(model).placements]
    except (ValueError, TypeError, NotImplementedError):
        return []


def live_name(model: Any) -> str:
    """The names of the encodings that are live in the model, "stock" without any."""
    return "+".join(dict.fromkeys(encoding.name for encoding in live_encodings(model))) or STOCK


def check_live(model: Any, plan: Plan) -> dict[str, str | None]:
    """Patch once with every encoding before anything is measured, and return what is live then, as fingerprints.

    A mistake in the last of seven encodings is found at once, and so is a patch that changes nothing.
    """
    stock, _ = inspect_model(model)
    found = {}
    for name, options in plan.items():
        with encoded(model, name, options):
            found[name], _ = inspect_model(model)
        if name_of(name) != STOCK and found[name] == stock:
            raise ValueError(f"{name}: the patched model has the same live encoding as the stock model (fingerprint {stock})")
    return found


@contextmanager
def encoded(model: Any, name: str, options: Mapping[str, Any]) -> Iterator[None]:
    """The model with this encoding, for the length of the block."""
    kind = name_of(name)
    with nullcontext() if kind == STOCK else patching.patched(model, kind, **patch_options(options)):
        yield


def weights_digest(model: Any) -> str:
    """Identifies the weights by 64 values of each tensor, so that a retrained model in the same folder is measured again."""
    state = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 64)].float().cpu()
        state.update(name.encode() + sample.numpy().tobytes())
    return state.hexdigest()[:16]


def digest(settings: Mapping[str, Any]) -> str:
    """Identifies settings (8 hex digits)."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
