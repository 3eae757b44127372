"""Time and memory of `hf_posenc.perplexity` against what it computes: a bare forward pass, and the usual loops.

    python recipes/benchmark_perplexity.py                                # SmolLM2-135M at 4k and 16k; 25 minutes on two CPU cores
    python recipes/benchmark_perplexity.py --parts sliding --tokens 6144

Part `prefix`: the first L tokens in one pass, against the same decoder and output layer (in chunks) without the loss, and against the
model's own forward with all logits, as far as those fit. Part `sliding`: windows of 4,096 tokens, 512 apart, against the loop of the
transformers documentation, which computes all logits of every window, and against the decoder alone (the floor).

Each cell is a multiple of the first row, then the number itself. Memory is the most that torch held at once of what it allocated in the
call, beyond weights. The nats that the calls found are printed below each table: they must agree.
"""

import sys
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch.nn import functional as F

from hf_posenc import perplexity
from hf_posenc.benchmarking import Comparison
from hf_posenc.command import exit_status
from hf_posenc.evaluation import embedded_corpus, resolve_model
from hf_posenc.evaluation.models import is_device, load, load_tokenizer
from hf_posenc.evaluation.token_nll import decode, evaluating, find_head
from hf_posenc.flags import at_least, parse

PARTS = ("prefix", "sliding")
FULL_LOGITS = 1 << 28
"""Logits that a call may hold at once."""


@dataclass
class Arguments:
    """Time and memory of perplexity against a bare forward pass and the usual loops."""

    parts: list[str] = field(default_factory=lambda: [*PARTS], metadata={"help": "what to measure", "choices": PARTS})
    model: str = field(default="demo", metadata={"help": "hub id, local path, or 'demo' (SmolLM2-135M-Instruct)"})
    lengths: Annotated[list[int], at_least(2)] = field(
        default_factory=lambda: [4096, 16384], metadata={"help": "of the part prefix, in tokens"}
    )
    window: Annotated[int, at_least(2)] = field(default=4096, metadata={"help": "of the part sliding, in tokens"})
    stride: Annotated[int, at_least(1)] = field(default=512, metadata={"help": "of the part sliding, in tokens"})
    tokens: Annotated[int, at_least(2)] = field(default=8192, metadata={"help": "length of the document of the part sliding"})
    repeat: Annotated[int, at_least(1)] = field(default=2, metadata={"help": "timed repetitions"})
    device: Annotated[str, is_device] = field(default="cpu", metadata={"help": "cpu or cuda"})


class Calls:
    """The calls of both parts; `nats` keeps the mean that each found."""

    def __init__(self, given: Arguments):
        path = resolve_model(given.model)
        self.given, self.model = given, load(path, "float32", given.device)
        text = embedded_corpus()[: 8 * max(given.tokens, *given.lengths)]
        self.ids = load_tokenizer(path)(text, return_tensors="pt", verbose=False).input_ids[0]
        self.head = find_head(self.model, self.ids)
        self.nats: dict[str, float] = {}

    def bare(self, ids: torch.Tensor) -> None:
        """Decoder and output layer, no loss."""
        with evaluating(self.model):
            for states in decode(self.model, ids[None].to(self.model.device)).split(1024, dim=1):
                self.head(states)

    def ours(self, ids: torch.Tensor, **how) -> None:
        """`perplexity`."""
        name = f"perplexity {how.get('protocol', 'prefix')} {len(ids)}"
        self.nats[name] = perplexity(self.model, ids, **how).scores[-1].nats

    def all_logits(self, ids: torch.Tensor) -> None:
        """The model's own forward, and one cross-entropy."""
        with torch.no_grad():
            logits = self.model(ids[None].to(self.model.device), use_cache=False).logits[0, :-1].float()
        self.nats[f"all logits {len(ids)}"] = F.cross_entropy(logits, ids[1:].to(logits.device)).item()

    def prefix(self, length: int) -> dict:
        """The calls of part `prefix`."""
        ids = self.ids[:length]
        found = {"bare forward": lambda: self.bare(ids), "perplexity": lambda: self.ours(ids, lengths=[length])}
        fits = length * self.model.config.vocab_size <= FULL_LOGITS
        return found | ({"all logits": lambda: self.all_logits(ids)} if fits else {})

    def windows(self, tokens: int):
        """Begin, end and number of new tokens of each window, as the documentation has them."""
        previous = 0
        for begin in range(0, tokens, self.given.stride):
            end = min(begin + self.given.window, tokens)
            yield begin, end, end - previous
            if end == tokens:
                return
            previous = end

    def documentation(self, ids: torch.Tensor) -> None:
        """The loop of the transformers documentation, with its nats weighted by token."""
        total = count = 0.0
        for begin, end, new in self.windows(len(ids)):
            inputs = ids[None, begin:end].to(self.model.device)
            labels = inputs.clone()
            labels[:, :-new] = -100
            with torch.no_grad():
                scored = (labels[:, 1:] != -100).sum().item()
                total, count = total + self.model(inputs, labels=labels, use_cache=False).loss.item() * scored, count + scored
        self.nats[f"documentation {len(ids)}"] = total / count

    def decoder(self, ids: torch.Tensor) -> None:
        """The decoder on every window, nothing else: no way to score them can be faster."""
        with evaluating(self.model):
            for begin, end, _ in self.windows(len(ids)):
                decode(self.model, ids[None, begin:end].to(self.model.device))

    def sliding(self, tokens: int) -> dict:
        """The calls of part `sliding`."""
        ids, how = self.ids[:tokens], {"lengths": [self.given.window], "protocol": "sliding", "stride": self.given.stride}
        return {
            "loop of the documentation": lambda: self.documentation(ids),
            "perplexity": lambda: self.ours(ids, **how),
            "decoder alone": lambda: self.decoder(ids),
        }


def run(given: Arguments) -> None:
    """Measure, and print a table for each part."""
    calls = Calls(given)
    for part in given.parts:
        make = {"prefix": calls.prefix, "sliding": calls.sliding}[part]
        lengths = given.lengths if part == "prefix" else [given.tokens]
        first = next(iter(make(lengths[0])))
        print(Comparison(f"{part}, {given.model}, float32", lengths, make, against=(first,), repeat=given.repeat).run(given.device))
        print("".join(f"\n- {name}: {nats:.6f} nats" for name, nats in calls.nats.items()), flush=True)
        calls.nats.clear()


if __name__ == "__main__":
    sys.exit(exit_status(lambda: run(*parse([Arguments], "recipes/benchmark_perplexity.py", None))))
