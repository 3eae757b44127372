"""Short rows at the positions of long ones: data collators that train a model for lengths it never computes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback, default_data_collator


class SkippedPositions(TrainerCallback):
    """A data collator that places the tokens of each row at some of the positions 0 ... target_length - 1, in ascending order.

    An attention mask of ones goes with the positions: without any mask transformers takes a jump for the start of a new packed
    document and hides all that came before.

    The draw for a row depends on the seed, the tokens of the row and the epoch, not on the batch, the worker, the process or the order:
    an interrupted run goes on with the positions that it would have had. Only as a callback of the Trainer (`attach`) does it hear of
    epochs; on its own it draws the same for a row each time.

    Rows are those of `pack(..., boundaries=False)`. `Trainer` uses its collator for the evaluation set too, so `eval_loss` is the
    loss at such positions; use `LengthEvaluation` for the loss at consecutive ones.

    Args:
        target_length: the positions to train for.
        seed: of the draws.
    """

    def __init__(self, target_length: int, seed: int = 0):
        self.target_length, self.seed, self.epoch = target_length, seed, 0

    def attach(self, trainer: Any) -> SkippedPositions:
        """Collate for `trainer`, and draw anew in each epoch."""
        trainer.data_collator = self
        trainer.add_callback(self)
        return self

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.epoch = int(state.epoch)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `labels`, `position_ids` and `attention_mask`, each [B, L].

        Raises:
            ValueError: rows that have positions already, or more tokens than there are positions.
        """
        batch = default_data_collator(list(rows))
        ids = batch["input_ids"]
        if "position_ids" in batch:
            raise ValueError("the rows have position_ids, to which no skips can be added: pack them with boundaries=False")
        if ids.shape[1] > self.target_length:
            raise ValueError(f"rows of {ids.shape[1]:,} tokens do not fit into {self.target_length:,} positions: raise target_length")
        positions = torch.stack([self.draw(len(row), self._generator(row)) for row in ids])
        return {**batch, "position_ids": positions, "attention_mask": torch.ones_like(ids)}

    def draw(self, length: int, generator: torch.Generator) -> torch.Tensor:
        """Positions [length], ascending, all below `target_length`."""
        raise NotImplementedError

    def _generator(self, row: torch.Tensor) -> torch.Generator:
        key = hashlib.blake2b(f"{self.seed} {self.epoch} ".encode() + row.numpy().tobytes(), digest_size=8)
        return torch.Generator().manual_seed(int.from_bytes(key.digest(), "little") >> 1)


class PoSE(SkippedPositions):
    """Positional skip-wise training (Zhu et al., 2023, arXiv:2309.10400, section 3.2).

    A row of L tokens falls into chunks, and chunk i is moved by u_i ~ U{u_(i-1) ... L' - L}, u_0 = 0: training at L shows the model
    distances up to L'. The encoding must reach L' already, for example `patch(model, "yarn", target_length=L')`.

    Differs from the authors' code: chunks are cut at uniformly random places (there the first of two is at most half the row), and their
    text is contiguous (there the second one comes from further on in a longer document).

    Args:
        target_length: L', in tokens.
        chunks: into which each row falls, at least 2; more of them leave fewer distances within a chunk.
        seed: of the draws.
    """

    def __init__(self, target_length: int, chunks: int = 2, seed: int = 0):
        if chunks < 2:
            raise ValueError(f"PoSE needs at least 2 chunks, got {chunks}: with one there is nothing to skip")
        super().__init__(target_length, seed)
        self.chunks = chunks

    def draw(self, length: int, generator: torch.Generator) -> torch.Tensor:
        if length < self.chunks:
            raise ValueError(f"a row of {length} tokens cannot be cut into {self.chunks} chunks")
        cuts = 1 + torch.randperm(length - 1, generator=generator)[: self.chunks - 1].sort().values
        skips, skip = torch.zeros(length, dtype=torch.long), 0
        for cut in cuts.tolist():
            skip = int(torch.randint(skip, self.target_length - length + 1, (), generator=generator))
            skips[cut:] = skip
        return torch.arange(length) + skips


class RandomizedPositions(SkippedPositions):
    """Randomized positional encodings (Ruoss et al., 2023, arXiv:2305.16843, section 3).

    Each row gets a random subset of the positions 0 ... L' - 1, in ascending order.

    Differs from the paper: one draw for each row, not for each batch; and it is for training alone, evaluation sees consecutive positions.

    Args:
        target_length: L', in tokens; the longest input that the model is to see.
        seed: of the draws.
    """

    def draw(self, length: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randperm(self.target_length, generator=generator)[:length].sort().values
