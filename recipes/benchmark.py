"""Time and memory of patched models against the stock model, as ratios in one run.

    python recipes/benchmark.py                                 # SmolLM2-135M shapes, 4 layers, 2k and 8k tokens; about 6 minutes
    python recipes/benchmark.py --layers 30 --lengths 8192      # the whole model

Weights are random: they do not change the time. The encodings take turns within each repetition, so that a slow moment of the machine
hits all of them, and medians are reported. Memory is the peak above what was resident before the call.
"""

import ctypes
import statistics
import sys
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, HfArgumentParser

import hf_posenc
from hf_posenc.evaluation.measure import Meter, versions

STOCK = "stock"
SMOLLM2_135M = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    "tie_word_embeddings": True,
}


@dataclass
class Arguments:
    encodings: list[str] = field(default_factory=lambda: ["yarn", "alibi", "t5", "rerope"], metadata={"help": "measured beside stock"})
    lengths: list[int] = field(default_factory=lambda: [2048, 8192], metadata={"help": "context lengths in tokens"})
    layers: int = field(default=4, metadata={"help": "layers of the model; SmolLM2-135M has 30"})
    repeat: int = field(default=3, metadata={"help": "repetitions of a forward pass"})
    steps: int = field(default=16, metadata={"help": "tokens decoded at each context length"})
    factor: float = field(default=2.0, metadata={"help": "extension factor, for the encodings that take one"})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda"})


def build(name: str, arguments: Arguments):
    """A model with SmolLM2's shapes, carrying the encoding."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", num_hidden_layers=arguments.layers, **SMOLLM2_135M)
    model = AutoModelForCausalLM.from_config(config).eval().to(arguments.device)
    if name != STOCK:
        takes = hf_posenc.describe(name).options
        hf_posenc.patch(model, name, **({"factor": arguments.factor} if "factor" in takes else {}))
    return model


def seconds(call, device: str) -> float:
    with Meter(torch.device(device)) as meter:
        call()
    return meter.seconds


def megabytes(call, device: str) -> float:
    """Peak memory above what was in use before."""
    with Meter(torch.device(device)) as idle:
        pass
    with Meter(torch.device(device)) as meter:
        call()
    return max(0, (meter.peak or 0) - (idle.peak or 0)) / 2**20


def return_freed_memory() -> None:
    """Have glibc give every freed tensor back to the system at once, so that resident memory shows what a call needs."""
    if sys.platform == "linux":
        mmap_threshold = -3
        ctypes.CDLL(None).mallopt(mmap_threshold, 1 << 16)


def attention_call(model, length: int, device: str):
    """One call of the attention function of a layer, causal, on random states."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    module = model.base_model.layers[0].self_attn
    heads, groups, width = SMOLLM2_135M["num_attention_heads"], SMOLLM2_135M["num_key_value_heads"], 64
    q, k, v = (torch.randn(1, n, length, width, device=device) for n in (heads, groups, groups))
    function = ALL_ATTENTION_FUNCTIONS[model.config._attn_implementation]
    positions = torch.arange(length, device=device)[None]
    return lambda: function(module, q, k, v, None, scaling=width**-0.5, position_ids=positions)


def forward_call(model, length: int, device: str):
    """A forward pass of the decoder, without its output layer."""
    ids = torch.randint(0, SMOLLM2_135M["vocab_size"], (1, length), device=device)
    return lambda: model.base_model(ids, use_cache=False)


class Decoding:
    """Single tokens after `length` tokens of context, each call one token."""

    def __init__(self, model, length: int, device: str):
        self.model = model
        ids = torch.randint(0, SMOLLM2_135M["vocab_size"], (1, length), device=device)
        self.cache = model.base_model(ids, use_cache=True).past_key_values
        self.token = ids[:, :1]

    def __call__(self):
        self.model.base_model(self.token, past_key_values=self.cache, use_cache=True)


def compare(title: str, models: dict, make, length: int, repeat: int, arguments: Arguments) -> None:
    """Median seconds of each model, printed as a table."""
    calls = {name: make(model, length, arguments.device) for name, model in models.items()}
    for call in calls.values():
        call()
    rounds = [{name: seconds(call, arguments.device) for name, call in calls.items()} for _ in range(repeat)]
    medians = {name: statistics.median(r[name] for r in rounds) for name in calls}
    show(f"{title}, {length:,} tokens", "ms", {name: 1e3 * value for name, value in medians.items()})


def compare_memory(title: str, models: dict, make, length: int, arguments: Arguments) -> None:
    used = {name: megabytes(make(model, length, arguments.device), arguments.device) for name, model in models.items()}
    show(f"{title}, {length:,} tokens", "peak MB", used)


def show(title: str, unit: str, values: dict[str, float]) -> None:
    table = Table("encoding", unit, "x stock", title=title, box=None, title_justify="left")
    for name, value in values.items():
        table.add_row(name, f"{value:.1f}", f"{value / values[STOCK]:.2f}" if values[STOCK] else "-")
    Console().print(table, "")


def main() -> int:
    (arguments,) = HfArgumentParser(Arguments, description=__doc__).parse_args_into_dataclasses()
    print(
        ", ".join(f"{k} {v}" for k, v in versions().items()), f"threads {torch.get_num_threads()}", arguments.device, sep=", ", end="\n\n"
    )
    models = {name: build(name, arguments) for name in (STOCK, *arguments.encodings)}
    with torch.no_grad():
        for length in arguments.lengths:
            compare("attention of one layer", models, attention_call, length, arguments.repeat, arguments)
            compare(f"forward of {arguments.layers} layers", models, forward_call, length, arguments.repeat, arguments)
            compare(f"decoding one token, {arguments.layers} layers", models, Decoding, length, arguments.steps, arguments)
        return_freed_memory()
        for length in arguments.lengths:
            compare_memory("attention of one layer", models, attention_call, length, arguments)
            compare_memory(f"forward of {arguments.layers} layers", models, forward_call, length, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
