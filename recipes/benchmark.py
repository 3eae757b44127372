"""Time and memory of patched models against the stock model, as ratios in one process, in Markdown.

    python recipes/benchmark.py --parts attention           # every path at 2k and 8k, one layer; 2 minutes
    python recipes/benchmark.py --parts forward             # the same, forward of 4 layers; 5
    python recipes/benchmark.py --parts costs               # a row for each class of cost, one layer, forward and training step; 3
    python recipes/benchmark.py --parts decode --num_layers 30   # a token after 2k and 8k; GPT-2 with RoPE against its own table; 6
    python recipes/benchmark.py --parts train               # forward and backward of the whole model at 2k; 8
    python recipes/benchmark.py --parts context             # contextual biases at 4k, 8k, 16k against the whole square; 4
    python recipes/benchmark.py --parts alternatives        # against a dense `position_bias=` and ReRoPE's two score matrices; 2
    python recipes/benchmark.py --parts flex                # all-flex models against stock sdpa and stock flex; 4; needs a C++ compiler
    python recipes/benchmark.py --parts whole               # forward of all 30 layers at 8k; 7
    python recipes/benchmark.py                             # all of them; about 40 minutes on two idle CPU cores

The shapes are SmolLM2-135M's (9 query heads, 3 key-value heads, width 64), or with --shape llama-8b those of Llama 3 8B (32, 8 and 128),
in float32 on a CPU and in bfloat16 on an accelerator; weights are random, which does not change the time. On a GPU:

    python recipes/benchmark.py --device cuda --shape llama-8b --lengths 2048 8192 32768 131072 --parts attention forward decode

What does not fit in memory is left out.
The model counts as trained for 2,048 tokens (--native), so that encodings that reach further do so at 8k.

Each cell is a multiple of the stock model with sdpa, then the number itself. Time is the median of several repetitions in which the
models take turns. Memory is the most that torch held at once of what it allocated in the call, counted allocation by allocation: no
inputs and no weights, but outputs, gradients in training, and in decoding the cache, which is copied as it grows. Each table is
printed when it is done.
"""

import copy
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import hf_posenc
from hf_posenc.benchmarking import Call, Comparison, fitting, free_memory, reaching
from hf_posenc.command import exit_status, parse_option
from hf_posenc.compat import CACHE, create_causal_mask
from hf_posenc.encodings import definition
from hf_posenc.encodings.base import ENCODINGS, products
from hf_posenc.encodings.options import one_of
from hf_posenc.evaluation.measure import versions
from hf_posenc.evaluation.models import DTYPES, is_device
from hf_posenc.flags import at_least, parse
from hf_posenc.verdict import name_of

STOCK = "stock"
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
        "tie_word_embeddings": True,
    },
    "llama-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    },
}
EVERY_PATH = (
    *("yarn", "alibi", "t5", "kerple", "sandwich", "rerope", "self_extend", "leaky_rerope", "dual_chunk"),
    *("lm_infinite", "streaming_llm", "string_shift", "fire", "shaw", "transformer_xl"),
)
EVERY_COST = ("yarn", "fox", "pope", "alibi", "rerope", "fire", "shaw", "cope", "dape", "stick_breaking")
"""One or two of each class of cost: a rotation, further columns, heads of twice the width, a table of distances, regions; and by query
block a bias of the positions, one of the content with moved values, mixed scores, those of all heads, something else than softmax."""
SQUARES = 6
"""Arrays of all scores that a dense form may hold at once."""


def is_part(flag: str, value: Any) -> None:
    """Raise ValueError for a part that there is not."""
    one_of(flag, value, list(PARTS))


@dataclass
class Arguments:
    """Time and memory of patched models against the stock model."""

    parts: Annotated[list[str], is_part] = field(
        default_factory=lambda: list(PARTS), metadata={"help": "what to measure; default everything"}
    )
    encoding: list[str] = field(default_factory=list, metadata={"help": "in place of those that each part measures"})
    lengths: Annotated[list[int], at_least(1)] = field(
        default_factory=list, metadata={"help": "tokens, in place of the lengths of each part"}
    )
    option: list[str] = field(default_factory=list, metadata={"help": "options as encoding.key=value: rerope.window=1024"})
    num_layers: Annotated[int, at_least(1)] = field(
        default=4, metadata={"help": "layers in the parts forward, decode and flex; SmolLM2-135M has 30"}
    )
    whole_layers: Annotated[int, at_least(1)] = field(
        default=30, metadata={"help": "layers in the parts train and whole; GPT-2 has at most 12"}
    )
    native: Annotated[int, at_least(1)] = field(
        default=2048, metadata={"help": "context length in tokens that the model counts as trained for"}
    )
    repeat: Annotated[int, at_least(1)] = field(default=3, metadata={"help": "timed repetitions"})
    steps: Annotated[int, at_least(1)] = field(default=16, metadata={"help": "tokens decoded at each context length"})
    threads: Annotated[int, at_least(1)] = field(default=2, metadata={"help": "threads of torch on a CPU"})
    device: Annotated[str, is_device] = field(default="cpu", metadata={"help": "cpu or cuda"})
    shape: str = field(default="smollm2-135m", metadata={"help": "of the model", "choices": list(SHAPES)})
    dtype: str = field(default="auto", metadata={"help": "auto: float32 on a CPU, else bfloat16", "choices": DTYPES})

    @property
    def torch_dtype(self) -> torch.dtype:
        usual = "float32" if torch.device(self.device).type == "cpu" else "bfloat16"
        return getattr(torch, usual if self.dtype == "auto" else self.dtype)

    def at(self, *lengths: int) -> list[int]:
        """The lengths of a part, unless others were asked for."""
        return self.lengths or list(lengths)

    def names(self, *names: str) -> list[str]:
        """The encodings of a part, unless others were asked for."""
        return self.encoding or [name for name in names if name in ENCODINGS]

    def options(self, name: str, length: int) -> dict:
        """Options with which one encoding reaches `length` tokens, and those that were asked for."""
        given = (option.partition(".") for option in self.option)
        chosen = dict(parse_option(option) for encoding, _, option in given if encoding == name)
        takes = set() if "target_length" in chosen else set(hf_posenc.describe(name).options)
        return {key: value for key, value in reaching(name, length, self.native).items() if key in takes} | chosen


def check(given: Arguments) -> None:
    """Raise ValueError for what cannot be measured, before anything is."""
    for option in given.option:
        if not re.match(r"\w+\.\w+=", option):
            raise ValueError(f"--option {option!r} is not encoding.key=value")
    for name in {*given.encoding, *(option.partition(".")[0] for option in given.option)}:
        sizes = (SHAPES[given.shape][size] for size in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
        geometry = hf_posenc.Geometry(*sizes, max_positions=given.native)
        hf_posenc.create(name, geometry, **given.options(name, given.native))


def models(given: Arguments, names: list[str], layers: int, lengths: list[int], stock=None, **settings) -> dict:
    """The stock model and one with each encoding, all holding the same weights."""
    torch.manual_seed(0)
    if stock is None:
        config = AutoConfig.for_model("llama", num_hidden_layers=layers, max_position_embeddings=given.native, **SHAPES[given.shape])
        stock = random_model(given, config, **settings)
    found = {STOCK: stock}
    for name in names:
        model = copy.deepcopy(stock, {id(weight): weight for weight in stock.parameters()})
        found[name] = hf_posenc.patch(model, name, **given.options(name, max(lengths) + given.steps + 1))
    return found


def random_model(given: Arguments, config, **settings):
    """A model of this configuration, built where it will run."""
    with torch.device(given.device):
        return AutoModelForCausalLM.from_config(config, dtype=given.torch_dtype, **settings).eval()


def turns(found: dict, make: Callable[..., Call]) -> Callable[[int], dict[str, Call]]:
    """length -> the same call on each model for which there is memory."""
    return lambda length: fitting({name: partial(make, model, length) for name, model in found.items()}, f" at {length:,} tokens")


def states(length: int, model) -> tuple[torch.Tensor, ...]:
    """Random queries [1,H,L,D], keys and values [1,G,L,D], and positions [1,L]."""
    torch.manual_seed(0)
    heads, groups = model.config.num_attention_heads, model.config.num_key_value_heads
    made = {"device": model.device, "dtype": model.dtype}
    q, k, v = (torch.randn(1, n, length, model.config.head_dim, **made) for n in (heads, groups, groups))
    return q, k, v, torch.arange(length, device=model.device)[None]


def attention_call(model, length: int, **more) -> Call:
    """One call of the attention function of a layer, causal, on random states."""
    module = model.base_model.layers[0].self_attn
    q, k, v, pos = states(length, model)
    mask = create_causal_mask(model.config, q[:, 0], None, None, position_ids=pos)
    function = ALL_ATTENTION_FUNCTIONS[model.config._attn_implementation]
    return lambda: function(module, q, k, v, mask, scaling=q.shape[-1] ** -0.5, position_ids=pos, **more)[0]


def tokens(model, length: int) -> torch.Tensor:
    return torch.randint(0, model.config.vocab_size, (1, length), device=model.device)


def forward_call(model, length: int) -> Call:
    """A forward pass of the decoder, without its output layer."""
    ids = tokens(model, length)
    return lambda: model.base_model(ids, use_cache=False)


def training_call(model, length: int) -> Call:
    """Loss and gradients of every weight. The gradients are dropped again: the models share the weights that hold them."""
    ids = tokens(model, length)

    def call():
        with torch.enable_grad():
            model(ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad()

    return call


def decoding_call(model, length: int) -> Call:
    """The next token after `length` tokens in the cache, which grows with each call."""
    ids = tokens(model, length)
    cache = model.base_model(ids, use_cache=True).past_key_values
    return lambda: model.base_model(ids[:, :1], **{CACHE: cache}, use_cache=True)


def encoding_of(model) -> hf_posenc.PositionalEncoding:
    return model.base_model.layers[0].self_attn.posenc_site.encoding


def whole_square(scores: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention [1,L,H,D] from all scores [1,H,L,L], as the attention function returns it."""
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    weights = scores.masked_fill_(future, -torch.inf).softmax(-1)
    return (weights @ v.repeat_interleave(scores.shape[1] // v.shape[1], 1)).transpose(1, 2)


def dense_call(model, length: int) -> Call:
    """The dense definition of the encoding of a model."""
    q, k, v, pos = states(length, model)
    encoding, seen = encoding_of(model), torch.ones(1, 1, length, length, dtype=torch.bool, device=q.device).tril()
    return lambda: definition.attention(encoding, q, k, v, pos, pos, seen)


def two_score_matrices(model, length: int) -> Call:
    """ReRoPE as its author computes it: the scores of near and of far keys, both whole, and a choice between them."""
    q, k, v, pos = states(length, model)
    encoding = encoding_of(model)
    rope, native = hf_posenc.create("rope", encoding.geometry), encoding.geometry.max_positions
    late = (torch.log(pos + 1.0) / math.log(native)).clamp(min=1)[:, None, :, None]

    def call():
        scaled = (q * late).to(q.dtype)
        near = products(rope.rotate_one(scaled, pos), rope.rotate_one(k, pos))
        far = products(rope.rotate_one(scaled, torch.full_like(pos, encoding.window)), k)
        scores = torch.where(pos.mT - pos < encoding.window, near, far)
        return whole_square(scores.mul_(q.shape[-1] ** -0.5), v)

    return call


def position_bias_calls(model, encoding: hf_posenc.PositionalEncoding, length: int) -> dict[str, Call]:
    """A bias through `position_bias=` of transformers' sdpa, made once before the call or anew in it."""
    pos = torch.arange(length, device=model.device)[None]
    square = lambda: encoding.bias_matrix(pos, pos).to(model.dtype)  # noqa: E731
    calls = {"position_bias=, ready": attention_call(model, length, position_bias=square())}
    return calls | {"position_bias=, made": lambda: attention_call(model, length, position_bias=square())()}


def fits(what: str, length: int, model) -> bool:
    """Whether the squares of a dense form fit in free memory; if not, say so."""
    needed = SQUARES * 4 * model.config.num_attention_heads * length**2
    free = free_memory(model.device)
    if needed > free:
        print(f"{what} at {length:,} tokens is left out: it may need {needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free", flush=True)
    return needed <= free


def attention(given: Arguments) -> Iterator[Comparison]:
    lengths = given.at(2048, 8192)
    found = models(given, given.names(*EVERY_PATH), 1, lengths)
    yield Comparison("Attention of one layer", lengths, turns(found, attention_call), repeat=given.repeat)


def forward(given: Arguments) -> Iterator[Comparison]:
    lengths = given.at(2048, 8192)
    found = models(given, given.names(*EVERY_PATH), given.num_layers, lengths)
    yield Comparison(f"Forward, {given.num_layers} layers", lengths, turns(found, forward_call), repeat=given.repeat)


def costs(given: Arguments) -> Iterator[Comparison]:
    lengths = given.at(2048, 8192)
    found = models(given, given.names(*EVERY_COST), 1, lengths)
    yield Comparison("Forward, one layer, by class of cost", lengths, turns(found, forward_call), repeat=given.repeat)
    learning = {name: model.train() for name, model in found.items()}
    yield Comparison("Training step, one layer, by class of cost", lengths[:1], turns(learning, training_call), repeat=given.repeat)


def decode(given: Arguments) -> Iterator[Comparison]:
    lengths = given.at(2048, 8192)
    found = models(given, given.names("yarn", "alibi", "t5", "rerope", "self_extend"), given.num_layers, lengths)
    yield Comparison(f"Decoding one token, {given.num_layers} layers", lengths, turns(found, decoding_call), repeat=given.steps)
    config = AutoConfig.for_model("gpt2", n_layer=min(12, given.whole_layers), n_positions=max(lengths) + given.steps + 1)
    found = models(given, ["rope"], config.n_layer, lengths, stock=random_model(given, config))
    calls = turns({"learned": found[STOCK], "rope": found["rope"]}, decoding_call)
    yield Comparison("Decoding one token, GPT-2", lengths, calls, against=("learned",), repeat=given.steps)


def train(given: Arguments) -> Iterator[Comparison]:
    lengths = given.at(2048)
    found = models(given, given.names("alibi", "t5", "rerope", "fire"), given.whole_layers, lengths)
    calls = turns({name: model.train() for name, model in found.items()}, training_call)
    yield Comparison(f"Training step, {given.whole_layers} layers", lengths, calls, repeat=given.repeat)


def context(given: Arguments) -> Iterator[Comparison]:
    lengths = given.at(4096, 8192, 16384)
    names = [name for name in given.names("shaw", "transformer_xl") if ENCODINGS[name].has("context_bias")]
    found = models(given, names, 1, lengths)

    def calls(length: int) -> dict[str, Call]:
        dense = [name for name in names if fits(f"{name}, dense", length, found[STOCK])]
        return turns(found, attention_call)(length) | {f"{name}, dense": dense_call(found[name], length) for name in dense}

    yield Comparison("Contextual bias, attention of one layer", lengths, calls, repeat=given.repeat)


def alternatives(given: Arguments) -> Iterator[Comparison]:
    lengths = given.at(4096, 8192)
    found = models(given, ["alibi", "rerope"], 1, lengths)
    stock, alibi, rerope = found.values()

    def biases(length: int) -> dict[str, Call]:
        calls = turns({STOCK: stock, "alibi": alibi}, attention_call)(length)
        dense = fits("position_bias=", length, stock)
        return calls | (position_bias_calls(stock, encoding_of(alibi), length) if dense else {})

    def remaps(length: int) -> dict[str, Call]:
        calls = turns({STOCK: stock, "rerope": rerope}, attention_call)(length)
        dense = fits("rerope from two score matrices", length, stock)
        return calls | ({"two score matrices": two_score_matrices(rerope, length)} if dense else {})

    yield Comparison("ALiBi, attention of one layer", lengths, biases, repeat=given.repeat)
    yield Comparison("ReRoPE, attention of one layer", lengths, remaps, repeat=given.repeat)


def flex(given: Arguments) -> Iterator[Comparison]:
    lengths, layers = given.at(2048, 8192), given.num_layers
    compiled = models(given, given.names("fire"), layers, lengths, attn_implementation="flex_attention")
    found = models(given, [], layers, lengths) | {f"{name}, flex": model for name, model in compiled.items()}
    for title, make in (("Attention of one layer", attention_call), (f"Forward, {layers} layers", forward_call)):
        yield Comparison(f"{title}, flex", lengths, turns(found, warmed(make)), against=(STOCK, f"{STOCK}, flex"), repeat=given.repeat)


def warmed(make: Callable[..., Call]) -> Callable[..., Call]:
    """The calls of `make` after a first one, in which torch compiles."""

    def made(model, length: int) -> Call:
        call = make(model, length)
        call()
        return call

    return made


def whole(given: Arguments) -> Iterator[Comparison]:
    lengths = given.at(8192)
    found = models(given, given.names("yarn", "alibi"), given.whole_layers, lengths)
    yield Comparison(f"Whole model forward, {given.whole_layers} layers", lengths, turns(found, forward_call), repeat=given.repeat)


PARTS = {part.__name__: part for part in (attention, forward, costs, decode, train, context, alternatives, flex, whole)}


@torch.no_grad()
def run(given: Arguments) -> None:
    check(given)
    torch.set_num_threads(given.threads)
    about = [f"{package} {version}" for package, version in versions().items()]
    dtype = str(given.torch_dtype).removeprefix("torch.")
    print(", ".join([*about, name_of(torch.device(given.device)), f"{given.threads} threads", given.shape, dtype]), end="\n\n", flush=True)
    for part in given.parts:
        for comparison in PARTS[part](given):
            print(comparison.run(given.device), flush=True)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: run(*parse([Arguments], "recipes/benchmark.py", None))))
