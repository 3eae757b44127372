"""One prompt, one model: is the answer there, teacher-forced or generated, and how surely."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from ..measure import Meter
from ..reach import forget_length
from ..token_nll import Head, Progress, cross_entropy, decode, evaluating, full_logits, input_device, reporting
from .grid import Context, Place
from .prompts import Prompt, Prompts


@dataclass(frozen=True)
class Trial:
    """What was found with one prompt; a line of the journal.

    Args:
        length, depth, index, context: which prompt of the grid it is.
        sha256: identifies its tokens.
        tokens, correct, nats: how many tokens the answers have, how many of them are the most likely ones given the true ones before
            them, and the nats of all of them.
        found: share of the answers whose tokens all are.
        generated: score of what greedy generation `said`; None where it was not asked for.
        ran: tokens that went through the model.
        seconds, peak_memory, peak_memory_kind, rank: what it took, and which process did it.
    """

    length: int
    depth: float | None
    index: int
    context: Context
    sha256: str
    tokens: int
    correct: int
    nats: float
    found: float
    generated: float | None
    said: str | None
    ran: int
    seconds: float
    peak_memory: int | None
    peak_memory_kind: str | None
    rank: int = 0

    @property
    def place(self) -> Place:
        """In the grid."""
        return Place(self.length, self.depth, self.index, self.context)

    @property
    def score(self) -> float:
        """Of the generated answer where there is one, else the share of the answers that are found teacher-forced."""
        return self.found if self.generated is None else self.generated

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

    def trial(self, prompt: Prompt, place: Place, rank: int = 0) -> Trial:
        """Put one prompt to the model.

        Raises:
            FloatingPointError: a loss is infinite or not a number.
        """
        said, ran = None, len(prompt.input_ids)
        with Meter(input_device(self.model)) as meter:
            correct, nats = self.score(prompt)
            if self.generate:
                said, steps = self.generates(prompt)
                ran += steps
        if not nats.isfinite().all():
            where = f"at length {place.length:,}, depth {place.depth}, trial {place.index}"
            raise FloatingPointError(f"the nats of an answer {where} are not finite: {[round(each, 3) for each in nats.tolist()]}")
        found = [bool(part.all()) for part in correct.split([len(answer) for answer in prompt.answers])]
        return Trial(
            **vars(place),
            sha256=prompt.sha256,
            tokens=len(nats),
            correct=int(correct.sum()),
            nats=nats.double().sum().item(),
            found=sum(found) / len(found),
            generated=None if said is None else self.prompts.task.score(said, prompt.keys, prompt.question),
            said=said,
            ran=ran,
            seconds=meter.seconds,
            peak_memory=meter.peak,
            peak_memory_kind=meter.kind,
            rank=rank,
        )

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
        forget_length(self.model)
        return input_ids[None].to(input_device(self.model))

    def generates(self, prompt: Prompt) -> tuple[str, int]:
        """What the prompt up to the first answer is greedily continued with, and how many tokens went through the model for it."""
        ids = self.fresh(prompt.input_ids[: prompt.start])
        settings = greedy(prompt.budget, self.prompts.tokenizer)
        with evaluating(self.model), reporting(self.model, ids.numel(), self.progress):
            found = self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        return self.prompts.tokenizer.decode(found[0, prompt.start :], skip_special_tokens=True), found.shape[1] - 1


def greedy(tokens: int, tokenizer: Any) -> GenerationConfig:
    """The most likely token, whatever sampling or penalties the model's own generation config asks for."""
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    plain = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    return GenerationConfig(max_new_tokens=tokens, pad_token_id=pad, **plain)
