"""Models for the tests of exports: a small one in which all of the text matters, the GGUF that a converter makes of it, and a server."""

import contextlib

import torch
from tiny import tiny_model

VOCABULARY = 260
NATIVE = 64
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "head_dim": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": NATIVE,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0},
}
PROMPT = torch.randint(0, 256, (NATIVE - 4,), generator=torch.Generator().manual_seed(0)).tolist()
SCHEMES = {
    "rope": {"theta": 500_000.0},
    "linear": {"factor": 2.0},
    "ntk": {"factor": 2.0},
    "ntk_by_parts": {"factor": 4.0},
    "yarn": {"factor": 4.0},
    "yarn:beta_slow=0.1": {"factor": 4.0, "beta_slow": 0.1},
    "yarn:attention_factor=0.9": {"factor": 4.0, "attention_factor": 0.9},
    "yarn:truncate=false": {"factor": 4.0, "truncate": False},
    "llama3": {"factor": 4.0},
    "p_rope": {"p": 0.25},
    "nope": {},
    "ntk_mixed": {"factor": 2.0},
    "resonance": {"base": "yarn", "factor": 2.0},
}
"""Encodings that are one table of frequencies, with options."""


def model_for(family="llama", **changes):
    """A random model with weights so large that each token before the last one is seen in its logits."""
    model = tiny_model(family, **SHAPE | changes)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return model


@torch.no_grad()
def log_probs(model, prompt=PROMPT):
    """Log-probabilities of the next token."""
    return model(torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1)


def save_base(model, path):
    """The GGUF of a model, without its weights, which are zeros; its tokens are words: of half a character no server tells much."""
    import gguf
    import numpy as np

    config, architecture = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(["Ċ", *(f"t{i}" for i in range(1, config.vocab_size))])  # the first is a new line, which it looks for
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(config.vocab_size - 2)
    writer.add_eos_token_id(config.vocab_size - 1)
    writer.add_add_bos_token(False)
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), np.zeros(weight.shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@contextlib.contextmanager
def llama_server(path, context=256, tell=lambda given: None):
    """The server of llama.cpp with the model of a GGUF, all in float32, for the length of the block; `tell` sets further parameters."""
    import xllamacpp

    given = xllamacpp.CommonParams()
    given.model.path, given.n_ctx, given.n_parallel = str(path), context, 1
    given.warmup, given.fit_params, given.verbosity = False, False, 0
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = torch.get_num_threads()
    given.cache_type_k = given.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    given.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    tell(given)
    server = xllamacpp.Server(given)
    try:
        yield server
    finally:
        del server
