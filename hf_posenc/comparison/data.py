"""The text of a study: what every run is tested on, and what it is trained on in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

from ..evaluation.corpus import CorpusError, dataset_texts, embedded_corpus, read_texts
from .arguments import CompareArguments
from .base import Base


@dataclass(frozen=True)
class Corpus:
    """Tokens to test on and blocks to train on.

    Args:
        test: [T] int64, from the beginning of the text, so that other settings of the training do not move it.
        blocks: [N,L] int64, what follows, cut without regard to documents, as is usual in pretraining.
    """

    test: torch.Tensor
    blocks: torch.Tensor

    def batches(self, seed: int, count: int) -> torch.Tensor:
        """The blocks [count,L] in the order in which a run of this seed sees them, whatever its encoding: shuffled anew in each pass."""
        generator = torch.Generator().manual_seed(seed)
        passes = -(-count // len(self.blocks))
        order = torch.cat([torch.randperm(len(self.blocks), generator=generator) for _ in range(passes)])[:count]
        return self.blocks[order]


class Rows(Dataset):
    """Blocks [N,L] as rows for `Trainer`."""

    def __init__(self, blocks: torch.Tensor):
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}


def read_corpus(arguments: CompareArguments, base: Base) -> Corpus:
    """No more of the text is read than the test and all steps can see.

    Raises:
        CorpusError: there is no text, or not enough for the test and one block.
    """
    length, held_out = arguments.train_length, arguments.eval_tokens
    wanted = held_out + arguments.steps * arguments.batch_size * length
    ids = torch.tensor(first_tokens(arguments, base, wanted))
    if len(ids) < held_out + length:
        needed = f"{held_out + length:,} are needed (eval_tokens + train_length)"
        raise CorpusError(f"the text has {len(ids):,} {arguments.unit}s; {needed}: bring more text or lower them")
    train = ids[held_out:]
    return Corpus(ids[:held_out], train[: len(train) // length * length].view(-1, length))


def first_tokens(arguments: CompareArguments, base: Base, wanted: int) -> list[int]:
    """The first tokens of the text, at most so many."""
    ids: list[int] = []
    for document in documents(arguments):
        ids += (base.separator if ids else []) + base.encode(document)
        if len(ids) >= wanted:
            break
    return ids[:wanted]


def documents(arguments: CompareArguments) -> Iterator[str]:
    """The documents one after the other."""
    if arguments.text:
        yield from read_texts(arguments.text)
    elif arguments.dataset:
        rows = dataset_texts(arguments.dataset, arguments.dataset_config, arguments.split, arguments.text_column)
        yield from (row.content for row in rows)
    else:
        yield embedded_corpus()


def digest(ids: torch.Tensor) -> str:
    """Identifies tokens in their order (16 hex digits)."""
    return hashlib.sha256(ids.contiguous().numpy().tobytes()).hexdigest()[:16]
