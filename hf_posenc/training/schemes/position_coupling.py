from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...encodings.options import count, flag
from .base import Collator, Document, PositionScheme, scheme

DIGITS = tuple("0123456789")


@scheme("position_coupling")
class PositionCoupling(PositionScheme):
    """Digits of one significance at one position (Cho et al., 2024, arXiv:2405.20671), for sums and products.

    In 653+49=207, with the answer written backwards, the digits lie at k + 3, 2, 1, at k + 2, 1 and at k + 1, 2, 3, all other tokens at k,
    special ones at 0; k ~ U{1 ... max_position - n} for a text whose longest number has n digits. The task is in the positions, so the
    model is to see them whenever it is called: an attached Trainer evaluates at k = 1, and `positions(ids)` are those for calls of one's
    own. `generate` goes on by one from the position of =, which is right for answers that are written backwards.

    Differs from the authors' code: without reversed_answer, = lies at k too in sums of two terms (there at n + 1). Their N x 2
    multiplication, parity, copies and minesweeper couple otherwise, and are not here.

    Args:
        max_position: the last position that digits may lie at.
        reversed_operands, reversed_answer: those numbers are written with the last digit first; the answer is what follows =.
        digits, equals: token ids of single digits and of =; default those of the tokenizer that the Trainer has (`processing_class`).
        random: False always has k = 1.
    """

    def __init__(
        self,
        max_position: int,
        reversed_operands: bool = False,
        reversed_answer: bool = True,
        digits: Iterable[int] = (),
        equals: int | None = None,
        random: bool = True,
        seed: int = 0,
        collator: Collator | None = None,
    ):
        super().__init__(seed, collator)
        self.max_position = count("max_position", max_position, at_least=2)
        self.reversed = flag("reversed_operands", reversed_operands), flag("reversed_answer", reversed_answer)
        self.digits, self.equals, self.special = set(digits), set() if equals is None else {equals}, set[int]()
        self.random = flag("random", random)

    def draw(self, document: Document, generator: torch.Generator) -> Tensor:
        places, longest = self.significance(document.ids.tolist())
        if longest >= self.max_position:
            raise ValueError(f"a number of {longest} digits does not fit below position {self.max_position}: raise max_position")
        start = int(torch.randint(1, self.max_position - longest + 1, (), generator=generator)) if self.random else 1
        return torch.tensor([0 if place is None else start + place for place in places])

    def significance(self, ids: list[int]) -> tuple[list[int | None], int]:
        """Of each token: 1 for the last digit of a number, 2 for the one before; 0 for no digit, None for special ones. And the most."""
        if not self.digits or not self.equals:
            raise ValueError(
                "position_coupling does not know what digits are: attach it to a Trainer with a tokenizer, or give digits and equals"
            )
        found: list[int | None] = []
        begin, answer = 0, False
        for at, token in enumerate([*ids, None]):
            if token in self.digits:
                continue
            number = range(1, at - begin + 1)
            found += number if self.reversed[answer] else reversed(number)
            begin, answer = at + 1, answer or token in self.equals
            found.append(None if token in self.special else 0)
        return found[:-1], max(place or 0 for place in found)

    def positions(self, ids: Tensor) -> Tensor:
        """Positions of a text [n] or of several [B,n], with k = 1: to evaluate at."""
        if ids.ndim > 1:
            return torch.stack([self.positions(row) for row in ids])
        return self.steady().draw(Document(ids, None), torch.Generator()).to(ids.device)

    def steady(self) -> PositionCoupling:
        """The same without chance."""
        same = copy.copy(self)
        same.random = False
        return same

    def reach(self, length: int) -> int:
        return self.max_position + 1

    def prepare(self, model: Any, tokenizer: Any = None) -> PositionCoupling:
        if not self.digits and tokenizer is not None:
            self._read(tokenizer)
        self.significance([])
        return super().prepare(model, tokenizer)

    def attach(self, trainer: Any) -> PositionCoupling:
        super().attach(trainer)
        trainer.data_collator = self.steady()
        return self

    def _read(self, tokenizer: Any) -> None:
        words = [word.strip() for word in tokenizer.batch_decode([[token] for token in range(len(tokenizer))])]
        self.digits = {token for token, word in enumerate(words) if word in DIGITS}
        self.equals = {token for token, word in enumerate(words) if word == "="}
        self.special = set(tokenizer.all_special_ids)
        written = tokenizer("".join(DIGITS), add_special_tokens=False)["input_ids"]
        if not set(written) <= self.digits:
            raise ValueError("position_coupling needs a tokenizer that gives each digit a token of its own; this one writes several as one")
