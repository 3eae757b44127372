"""Documents packed into one row: kept apart by where their positions begin again, or by the numbers that a mask gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers.masking_utils import packed_sequence_mask_function

from ..compat import create_masks_for_generate
from .cached import arguments_of, cache_in
from .choice import FLASH
from .positions import COUNTED


def hook_documents(decoder: nn.Module) -> RemovableHandle:
    """Let a decoder keep packed documents apart (`DocumentMasks`); the handle undoes it."""
    return decoder.register_forward_pre_hook(DocumentMasks(arguments_of(decoder)), with_kwargs=True)


class DocumentMasks:
    """Before a decoder runs: where positions begin again within a row, the mask that hides the other documents of the row.

    A 2-D mask with numbers above 1 tells documents by these, wherever their tokens lie: 2, 2, 2, 3, 3 is a row of two, 0 is padding.

    transformers looks for packed documents in some families only, and in none that is given a 2-D mask: one of ones, as most collators
    add, would undo the packing. Padding stays hidden, and is no document. Beside a 2-D mask, or with `use_cache`, a jump ahead does not
    end a document; without them it does, as transformers has it. What goes on from a KV cache is left alone, and so is a mask that says
    all by itself.

    Raises:
        ValueError: when it is called, if flash attention would not keep the documents apart.

    Args:
        names: of the arguments of the decoder's `forward`.
    """

    def __init__(self, names: Sequence[str]):
        self.names = names

    def __call__(self, decoder: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        given: dict[str, Any] = dict(zip(self.names, args, strict=False)) | kwargs
        rows, positions, mask = rows_of(given)
        if cache_in(given) is not None or not readable(positions, mask):
            return args, kwargs
        positions = positions.expand(rows, -1)
        mask = None if mask is None else mask.to(positions.device)
        starts = restarts(positions, mask)
        if not torch.compiler.is_compiling() and not (starts if mask is None else starts | are_numbers(mask)).any():
            return args, kwargs
        if str(decoder.config._attn_implementation).endswith(FLASH):
            check_flash(rows, mask)
        use_cache = given.get("use_cache")  # None, as the models with a head hand it on, leaves it to the configuration
        if mask is None and not (decoder.config.use_cache if use_cache is None else use_cache):
            starts = positions.diff(prepend=positions[:, :1] - 1) != 1
        return (), given | {"attention_mask": document_masks(decoder, starts.cumsum(-1), None if mask is None else mask.bool())}


def check_flash(rows: int, mask: Tensor | None) -> None:
    """Raise ValueError for packed documents that flash attention would let see each other: it tells them by positions, in one row."""
    if rows > 1 or not (mask is None or (mask == 1).all()):
        raise ValueError(
            "flash attention keeps packed documents apart only in a batch of one row without padding, where their positions begin at 0: "
            "put them all into one row, or load the model with attn_implementation='sdpa' or 'flex_attention'"
        )


def rows_of(given: dict[str, Any]) -> tuple[int, Any, Any]:
    """Number of rows of tokens, their positions and their mask; of the [batch, choices, tokens] that GPT-2 takes, each choice is a row."""
    positions, mask = given.get("position_ids"), given.get("attention_mask")
    if (embedded := given.get("inputs_embeds")) is not None:
        return len(embedded), positions, mask
    tokens = given["input_ids"]
    if tokens.ndim > 2:
        positions, mask = (x.flatten(0, -2) if isinstance(x, Tensor) and x.ndim == tokens.ndim else x for x in (positions, mask))
    return tokens.shape[:-1].numel(), positions, mask


def readable(positions: Any, mask: Any) -> bool:
    """Whether positions [B,Q] were given, and the mask, none or one for padding [B,Q], leaves it to them where documents begin."""
    given = isinstance(positions, Tensor) and not positions.is_meta and not hasattr(positions, COUNTED)
    told = given and positions.ndim == 2 and positions.shape[1] > 1
    return told and (mask is None or (isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == positions.shape[1]))


def are_numbers(mask: Tensor) -> Tensor:
    """Whether a mask [B,Q] numbers documents, from 2 on: [] bool."""
    return mask.amax() > 1


def restarts(positions: Tensor, mask: Tensor | None) -> Tensor:
    """Where positions [B,Q] fall or are 0 again, as seen from the token before that the mask [B,Q] does not hide: [B,Q] bool.

    A token that goes on from the position of padding is no new document: `generate` puts it there after a prompt padded on the right.
    Where the mask numbers documents, a new number is a new document, and nothing else is.
    """
    real = torch.ones_like(positions, dtype=torch.bool) if mask is None else mask.bool()
    steps = torch.arange(positions.shape[1], device=positions.device)
    before = F.pad(torch.where(real, steps, -1).cummax(-1).values[:, :-1], (1, 0), value=-1)
    earlier = positions.gather(-1, before.clamp(min=0))
    after_padding = F.pad(~real[:, :-1] & (positions.diff() == 1), (1, 0))
    begins = ((positions < earlier) & ~after_padding) | (positions == 0)
    if mask is not None:
        begins = torch.where(are_numbers(mask), mask != mask.gather(-1, before.clamp(min=0)), begins)
    return real & (before >= 0) & begins


def document_masks(decoder: Any, documents: Tensor, mask: Tensor | None) -> Any:
    """What the decoder takes for a mask, by its backend and its kinds of layers; `documents` [B,Q] numbers those of each row."""
    like = decoder.get_input_embeddings().weight.new_empty(*documents.shape, 0, device=documents.device)
    apart = packed_sequence_mask_function(documents)
    return create_masks_for_generate(decoder.config, like, mask, None, and_mask_function=apart)
