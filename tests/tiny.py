"""Tiny models of every registered architecture, and options for every registered encoding; no list of names."""

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import hf_posenc
from hf_posenc.architectures import ARCHITECTURES
from hf_posenc.encodings import ENCODINGS
from hf_posenc.encodings.temperature.base import Temperature
from hf_posenc.patching import patch_of

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)

NATIVE = 12  # context length of the tiny models: the tests go past it
WINDOW = 6
TINY = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "word_embed_proj_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "decoder_layers": 2,
    "decoder_ffn_dim": 96,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rotary_dim": 8,
    "max_position_embeddings": NATIVE,
    "max_seq_len": NATIVE,
    "window_size": WINDOW,
    "num_local_experts": 2,
    "num_experts_per_tok": 2,  # all of them: routing that flips with rounding would hide what is tested
    "no_rope_layers": [1, 0],
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


def tiny_config(model_type: str, **changes):
    """A configuration of the family at a size that runs in milliseconds, with sliding windows where the family has them."""
    default = AutoConfig.for_model(model_type)
    computed = {k for k in TINY if isinstance(getattr(type(default), k, None), property)}
    values = {k: v for k, v in TINY.items() if hasattr(default, k) and k not in computed}
    if getattr(default, "rope_parameters", None) and "rope_theta" in default.rope_parameters:
        keep = {k: v for k, v in default.rope_parameters.items() if k in ("rope_theta", "partial_rotary_factor")}
        values["rope_parameters"] = {"rope_type": "default", **keep}
    if getattr(default, "sliding_window", None):
        values["sliding_window"] = WINDOW
        if getattr(default, "layer_types", None):
            values["layer_types"] = ["sliding_attention", "full_attention"]
    values |= changes
    if hasattr(default, "attention_types"):
        values["attention_types"] = [[["local"], 1], [["global"], values["num_hidden_layers"] - 1]]
    if "layer_types" in values:
        values["layer_types"] = values["layer_types"][-values["num_hidden_layers"] :]
    if "no_rope_layers" in values:
        values["no_rope_layers"] = values["no_rope_layers"][: values["num_hidden_layers"]]
    return AutoConfig.for_model(model_type, **{"pad_token_id": 0} | values)  # StableLM up to 5.3 has none that is not given


def can_be_built(model_type: str) -> bool:
    """Whether this transformers has the family, and can build it from a configuration: 5.4.0 refuses a configuration of OLMo 2."""
    try:
        with torch.device("meta"):
            return bool(AutoModelForCausalLM.from_config(tiny_config(model_type)))
    except Exception:  # whatever a family raises there
        return False


def tiny_model(model_type: str, seed: int = 0, **changes):
    """A randomly initialised model of the family, in eval mode; larger weights than usual, so that attention is not flat."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name and "wte" not in name and "lm_head" not in name:
                parameter.mul_(4)
    return model


@torch.no_grad()
def off_start(model):
    """`model`, with the parameters of encodings that start as another, or at zero, moved from there, as training would."""
    torch.manual_seed(11)
    for placement in patch_of(model).placements:
        for parameter in placement.encoding.parameters():
            if placement.encoding.starts_as or not parameter.any():
                parameter.add_(torch.randn_like(parameter) / 10)
    return model


def stays(name: str | None, model_type: str) -> bool:
    """Whether the family has a learned table, which a patch with `name` leaves in place."""
    return name is not None and issubclass(ENCODINGS[name], Temperature) and ARCHITECTURES[model_type].is_learned


def tiny_for(name: str | None, model_type: str, seed: int = 0, **changes):
    """`tiny_model` to be patched with `name`: a table that stays is long enough for the tests."""
    return tiny_model(model_type, seed, **({"max_position_embeddings": 64} if stays(name, model_type) else {}) | changes)


def heed_ctrl_c():
    """For `preexec_fn` of a process that is to be interrupted: a job that a script starts with `&` ignores SIGINT, and so would it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@torch.no_grad()
def started(name: str, **options):
    """An encoding in a tiny Llama that has just been patched, and the logits of 17 tokens."""
    model = tiny_model("llama")
    torch.manual_seed(7)
    hf_posenc.patch(model, name, **options)
    return patch_of(model).placements[0].encoding, model(torch.arange(3, 20)[None]).logits


NEEDED = {"factor": 4.0, "digits": list(range(3, 33)), "separators": [5, 11, 24, 31]}


def needed_by(name: str) -> dict:
    """Options without which an encoding refuses: a factor, or the ids of tokens that it goes by."""
    return {k: v for k, v in NEEDED.items() if k in hf_posenc.describe(name).options}


def options_for(name: str) -> dict:
    """Options with which an encoding reaches past the native context of the tiny models, and shows what it does to such short texts."""
    wanted = NEEDED | {
        "max_positions": 64,
        "window": 3,
        "floor_scale": 4,
        "scale_base": 2.0,
        "max_offset": 0,  # chance would make two passes in training differ
    }
    return {k: v for k, v in wanted.items() if k in hf_posenc.describe(name).options}


def state_of(encoding, k, pos=None):
    """What an encoding with a state says of made-up tokens, one a key of k [B,G,K,D], at `pos` [B,K], by default 0, 1 ...; None without."""
    if not encoding.has("state"):
        return None
    x = torch.randn(len(k), k.shape[2], encoding.geometry.hidden_size, generator=torch.Generator().manual_seed(5), device="cpu").to(k)
    return encoding.state(x, torch.arange(k.shape[2], device=k.device).expand(len(k), -1) if pos is None else pos)


def scores_of(encoding, q, k, q_pos, k_pos, **more):
    """The dense definition of an encoding of any kind: on several axes text is alike on all, states are those of made-up tokens."""
    state = state_of(encoding, k, k_pos)
    q_pos, k_pos = (pos if encoding.axes == 1 else pos.expand(encoding.axes, -1, -1) for pos in (q_pos, k_pos))
    return encoding.scores(q, k, q_pos, k_pos, state=state, **more)


def scheme_options_for(name: str) -> dict:
    """Options of a position scheme for texts of a few tokens."""
    from hf_posenc.training import describe_scheme

    wanted = {"target_length": 40, "max_offset": 30, "max_position": 20, "digits": range(3, 30), "equals": 30, "chunks": 2}
    return {k: v for k, v in wanted.items() if k in describe_scheme(name).options}


def save_tiny(folder, family="llama", seed=0):
    """A random model and a tokenizer that gives every byte its own token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={"<s>": 0, **{symbol: at + 1 for at, symbol in enumerate(alphabet)}}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>").save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    positions = {"max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, vocab_size=257, **sizes, **positions)).save_pretrained(folder)
    return folder
