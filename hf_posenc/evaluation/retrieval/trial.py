"""One prompt, one model: is the number there, teacher-forced or generated, and how surely."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from ..measure import Meter
from ..reach import is_length_dependent
from ..token_nll import Head, Progress, cross_entropy, decode, evaluating, full_logits, input_device, reporting
from .prompts import Prompt, Prompts


@dataclass(frozen=True)
class Trial:
    """What was found with one prompt; a line of the journal.

    Args:
        length, depth, index: which prompt of the grid it is.
        sha256: identifies its tokens.
        tokens, correct, nats: how many tokens the answers have, how many of them are the most likely ones given the true ones before
            them, and the nats of all of them.
        generated: whether greedy generation gave the numbers; None where it was not asked for.
        ran: tokens that went through the model.
        seconds, peak_memory, peak_memory_kind, rank: what it took, and which process did it.
    """

    length: int
    depth: float
    index: int
    sha256: str
    tokens: int
    correct: int
    nats: float
    generated: bool | None
    ran: int
    seconds: float
    peak_memory: int | None
    peak_memory_kind: str | None
    rank: int = 0

    @property
    def exact(self) -> bool:
        """Whether every token of the answers is the most likely one."""
        return self.correct == self.tokens

    def to_dict(self) -> dict[str, Any]:
        """Plain strings and numbers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Trial:
        """What `to_dict` gave."""
        return cls(**found)


@dataclass(frozen=True)
class Examiner:
    """How prompts are put to a model.

    Args:
        model: a causal language model, patched or not.
        head: from `find_head`; None makes the logits of the whole prompt.
        prompts: of the task.
        generate: generate the answers greedily as well.
        progress: called with a number of tokens as they are done.
    """

    model: Any
    head: Head | None
    prompts: Prompts
    generate: bool = False
    progress: Progress | None = None

    def tokens(self, length: int) -> int:
        """How many tokens go through the model for a prompt of `length` tokens."""
        return 2 * length - 1 if self.generate else length

    def trial(self, prompt: Prompt, length: int, depth: float, index: int, rank: int = 0) -> Trial:
        """Put one prompt to the model.

        Raises:
            FloatingPointError: a loss is infinite or not a number.
        """
        with Meter(input_device(self.model)) as meter:
            correct, nats = self.score(prompt)
            generated = self.generates(prompt) if self.generate else None
        if not nats.isfinite().all():
            where = f"at length {length:,}, depth {depth:g}, trial {index}"
            raise FloatingPointError(f"the nats of an answer {where} are not finite: {[round(each, 3) for each in nats.tolist()]}")
        about = (self.tokens(length), meter.seconds, meter.peak, meter.kind, rank)
        return Trial(length, depth, index, prompt.sha256, len(nats), int(correct.sum()), nats.double().sum().item(), generated, *about)

    def score(self, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
        """For each token of the answers whether it is the most likely one, [N] bool, and its nats, [N] float32.

        One pass of the decoder; the output layer sees the answers only.
        """
        ids = self.fresh(prompt.input_ids)
        with evaluating(self.model):
            with reporting(self.model, ids.numel(), self.progress):
                run = full_logits if self.head is None else decode
                states = run(self.model, ids)[:, prompt.scored - 1]
            logits = (states if self.head is None else self.head(states))[0]
            targets = prompt.input_ids[prompt.scored]
            return logits.argmax(dim=-1).cpu() == targets, cross_entropy(logits, targets)

    def fresh(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The tokens [L] as [1, L] for the model, which has forgotten what it ran before."""
        ids = input_ids[None].to(input_device(self.model))
        if is_length_dependent(self.model):
            with evaluating(self.model):
                decode(self.model, ids[:, :1])  # stock dynamic NTK keeps the base of the longest input until a short one
        return ids

    def generates(self, prompt: Prompt) -> bool:
        """Whether the prompt up to the first answer, continued greedily to its length, says the numbers in their order."""
        start = prompt.answers[0].start
        ids = self.fresh(prompt.input_ids[:start])
        settings = greedy(len(prompt.input_ids) - start, self.prompts.tokenizer)
        with evaluating(self.model), reporting(self.model, ids.numel(), self.progress):
            found = self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        text = self.prompts.tokenizer.decode(found[0, start:], skip_special_tokens=True)
        return re.findall(r"\d+", text)[: len(prompt.keys)] == [*prompt.keys]


def greedy(tokens: int, tokenizer: Any) -> GenerationConfig:
    """The most likely token, whatever sampling or penalties the model's own generation config asks for."""
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    plain = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    return GenerationConfig(max_new_tokens=tokens, pad_token_id=pad, **plain)
