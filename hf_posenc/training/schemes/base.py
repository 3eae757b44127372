"""Position ids for training alone: data collators that place the tokens of a text elsewhere than at 0, 1, 2 ..."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from transformers import TrainerCallback, default_data_collator

from ...attention.documents import restarts
from ...evaluation.models import STOCK, live_encodings, live_name
from ...evaluation.reach import check_position_table
from ...registry import Registry
from ..loss import transformers_model
from ..packing import reads_documents
from ..trial import logits_at

Collator = Callable[[list[Any]], dict[str, Any]]
SCHEMES: Registry[type[PositionScheme]] = Registry("position scheme")
S = TypeVar("S", bound="PositionScheme")
TOKENS = 5
"""On which a model shows what it makes of positions: so few that a tenth more between two is no whole position more."""


@dataclasses.dataclass(frozen=True)
class Document:
    """One text of a row: the ids [n] of its tokens, and its labels [n] where there are any."""

    ids: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.ids)


class PositionScheme(TrainerCallback):
    """A data collator around another one, which gives each text of a row the positions that the scheme draws for it.

    `attach` it to a Trainer, and the batches of training get such positions; those of an evaluation stay as they are. By itself it is a
    collator for whatever loads data. A draw depends on the seed, the tokens of the row and the epoch, not on the batch, the worker, the
    process or the order: an interrupted run goes on with the positions that it would have had. Only a Trainer tells of epochs; by itself
    the collator draws the same for a row each time.

    A mask goes with the positions: without any, transformers takes a jump for the start of a new document and hides all that came before.
    The documents of packed rows (told by positions that begin again) are placed one by one, and numbered in the mask (`DocumentMasks`),
    because new positions may not tell them any more.

    Args:
        seed: of the draws.
        collator: makes batches [B,L] of rows, padded or packed as it likes; default that of the Trainer, or else transformers' own.
    """

    name: ClassVar[str]
    whole: ClassVar[bool] = True
    """Positions are whole numbers; otherwise the encoding must be defined between them."""
    target_length: int | None = None
    """Positions 0 ... target_length - 1 are drawn from, which the encoding must reach."""
    options: Mapping[str, Any] = MappingProxyType({})
    """Those that `create_scheme` was given."""

    def __init__(self, seed: int = 0, collator: Collator | None = None):
        self.seed, self.collator, self.epoch = seed, collator, 0
        self.numbered: bool | None = None
        """Whether the model reads a mask that numbers documents; None before it has been seen."""

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{self.name} ({options})" if options else self.name

    def draw(self, document: Document, generator: torch.Generator) -> Tensor:
        """Positions [n] of the tokens of a text."""
        raise NotImplementedError

    def reach(self, length: int) -> int:
        """All positions of a text of `length` tokens lie below."""
        return self.target_length or length

    def probe(self, steps: Tensor) -> Tensor:
        """Positions as the scheme draws them, for a few tokens at `steps` 0, 1, 2 ... on which a model is tried."""
        return steps

    # -- a collator ---------------------------------------------------------------------------------------------------

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        """The batch of the collator, with `position_ids` and `attention_mask` [B,L].

        Raises:
            ValueError: a text that cannot be placed; a batch without a row of tokens for each text; documents that the model sees as one.
        """
        batch = (self.collator or default_data_collator)(list(rows))
        ids, labels = batch["input_ids"], batch.get("labels")
        mask = batch.get("attention_mask", torch.ones_like(ids)).long()
        if ids.ndim != 2 or mask.shape != ids.shape:
            raise ValueError(f"{self.name} places rows of tokens [B,L], got {list(ids.shape)} under a mask {list(mask.shape)}")
        documents = number_documents(mask, batch.get("position_ids"))
        positions = torch.zeros(ids.shape, dtype=torch.long if self.whole else torch.float32)
        for row, numbers in enumerate(documents):
            generator = self.generator(ids[row, numbers > 0])
            for number in range(1, int(numbers.max()) + 1):
                here = numbers == number
                document = Document(ids[row, here], None if labels is None else labels[row, here])
                if self.target_length is not None and len(document) > self.target_length:
                    raise ValueError(
                        f"a text of {len(document):,} tokens does not fit into {self.target_length:,} positions: raise target_length"
                    )
                positions[row, here] = self.draw(document, generator).to(positions)
        return {**batch, "position_ids": positions, "attention_mask": self._mask(documents, positions, mask)}

    def _mask(self, documents: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """[B,L]: numbers of the documents from 2 on where positions alone would tell others, or none; 0 for padding."""
        several = bool(documents.max() > 1)
        if not several and not restarts(positions, mask).any():
            return mask
        if self.numbered is None:
            raise ValueError(
                f"{self.name} has rows of several documents, or positions that fall, and does not know whether the model tells them by the "
                "mask: attach(trainer), or prepare(model), or pack with boundaries=False"
            )
        if several and not self.numbered:
            raise ValueError(
                "this model would see the documents of a row as one: call hf_posenc.training.separate_documents(model) before, or pack "
                "with boundaries=False"
            )
        return torch.where(documents > 0, documents + 1, 0) if self.numbered else mask

    def generator(self, tokens: Tensor) -> torch.Generator:
        """What is drawn for a row with these tokens [n], in this epoch."""
        key = hashlib.blake2b(f"{self.seed} {self.epoch} ".encode() + tokens.numpy().tobytes(), digest_size=8)
        return torch.Generator().manual_seed(int.from_bytes(key.digest(), "little") >> 1)

    # -- a Trainer and its model --------------------------------------------------------------------------------------

    def attach(self: S, trainer: Any) -> S:
        """Place the training batches of `trainer`, anew in each epoch, and leave its evaluation alone.

        Raises:
            ValueError: see `prepare`; workers that would not hear of the next epoch, or precision that would be lost. Nothing has changed.
        """
        if trainer.args.dataloader_persistent_workers:
            raise ValueError(
                "workers that live on do not hear of the next epoch and its new positions: set dataloader_persistent_workers=False"
            )
        if not self.whole and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled) and (trainer.args.bf16 or trainer.args.fp16):
            raise ValueError(f"FSDP and DeepSpeed would round the positions of {self.name} to half precision: train in float32")
        self.prepare(trainer.model, trainer.processing_class)
        self.collator = self.collator or trainer.data_collator
        trainer.get_train_dataloader = TrainingBatches(trainer, self)
        trainer.add_callback(self)
        return self

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.epoch = int(state.epoch)

    def prepare(self: S, model: Any, tokenizer: Any = None) -> S:
        """See that `model` can be trained at such positions. It is left as it is; a few tokens go through it.

        Args:
            tokenizer: of the model, for schemes that look at what the tokens say.

        Raises:
            ValueError: the model takes no position ids, makes no difference between them, is not defined at such ones, or has a scaling or
                a table that ends before the target.
        """
        family = type(transformers_model(model)).__name__
        if "position_ids" not in inspect.signature(transformers_model(model).forward).parameters:
            raise ValueError(f"{family} takes no position ids: its positions count tokens, wherever {self.name} would place them")
        check_position_table(model, self.reach(1))
        for encoding in live_encodings(model):
            if encoding.geometry.max_positions < (reached := encoding.context_length or 0) < (self.target_length or 0):
                raise ValueError(
                    f"{self.name} places tokens at up to {self.target_length:,}, and {encoding.name!r} was asked to reach {reached:,}: the "
                    f"scaling of the target must be at work while the model trains. Patch with target_length={self.target_length}"
                )
        self._try(model, "the encoding of " + family if live_name(model) == STOCK else repr(live_name(model)))
        self.numbered = reads_documents(model)
        return self

    def _try(self, model: Any, encoding: str) -> None:
        """Raise ValueError where positions of this kind are not defined, or make no difference, seen on a few tokens."""
        steps = torch.arange(TOKENS) if self.whole else torch.arange(TOKENS, dtype=torch.float32)
        try:
            near, stretched, drawn = logits_at(model, steps, steps * (2 if self.whole else 1.1), self.probe(steps))
        except (TypeError, IndexError, RuntimeError) as error:  # what a lookup in a table says
            if self.whole or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(f"{self.name} places tokens between whole positions, where {encoding} is not defined") from error
        if torch.equal(near, stretched):
            kind = "no positions" if self.whole else "no positions between whole numbers"
            raise ValueError(f"{encoding} knows {kind}, and {self.name} draws them")
        if not drawn.isfinite().all():
            raise ValueError(f"{self.name} places tokens where the logits of {encoding} are not finite")
        self.judge((stretched - near).abs().max().item(), (drawn - near).abs().max().item(), encoding)

    def judge(self, stretched: float, drawn: float, encoding: str) -> None:
        """Raise ValueError where logits change too little: by `stretched` at positions further apart, by `drawn` at those of `probe`."""


class TrainingBatches:
    """In the place of a Trainer's `get_train_dataloader`: the same, with batches that a scheme has placed. Evaluation has its own."""

    def __init__(self, trainer: Any, scheme: PositionScheme):
        self.trainer, self.scheme, self.make = trainer, scheme, trainer.get_train_dataloader

    def __call__(self) -> Any:
        own, self.trainer.data_collator = self.trainer.data_collator, self.scheme
        try:
            return self.make()
        finally:
            self.trainer.data_collator = own


def number_documents(mask: Tensor, positions: Tensor | None) -> Tensor:
    """The documents of rows with a mask for padding [B,L], told by positions that begin again: 1, 2 ... in each row, 0 for padding."""
    if positions is None:
        return (mask > 0).long()
    return (1 + restarts(positions, mask).cumsum(-1)) * (mask > 0)


def scheme(name: str) -> Callable[[type[S]], type[S]]:
    """Class decorator that files a scheme under `name`."""

    def decorator(cls: type[S]) -> type[S]:
        SCHEMES.register(name)(cls)
        cls.name = name
        return cls

    return decorator
