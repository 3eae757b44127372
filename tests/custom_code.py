"""The code of a model that is not in transformers, as it lies beside the weights of a checkpoint."""

CONFIGURATION = """
from transformers import PretrainedConfig


class OwnConfig(PretrainedConfig):
    model_type = "own_decoder"

    def __init__(self, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=61, **kwargs):
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.num_attention_heads, self.num_key_value_heads = num_attention_heads, num_key_value_heads
        self.vocab_size = vocab_size
        self.max_position_embeddings = kwargs.pop("max_position_embeddings", 12)
        self.rope_parameters = kwargs.pop("rope_parameters", {"rope_type": "default", "rope_theta": 10000.0})
        super().__init__(**kwargs)
"""

MODELING = """
import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.cache_utils import DynamicCache
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, eager_attention_forward

from .configuration_own import OwnConfig


def turn(x, cos, sin):
    {turn}


class Attention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.config, self.layer_idx, self.is_causal, self.attention_dropout = config, layer_idx, True, 0.0
        self.width = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.width**-0.5
        self.q = nn.Linear(config.hidden_size, config.num_attention_heads * self.width, bias=False)
        self.kv = nn.Linear(config.hidden_size, 2 * config.num_key_value_heads * self.width, bias=False)
        self.o = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x, mask, angles, past_key_values=None, **kwargs):
        q = self.q(x).unflatten(-1, (-1, self.width)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (-1, 2 * self.width)).transpose(1, 2).chunk(2, -1)
        q, k = turn(q, *angles), turn(k, *angles)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        y, _ = attend(self, q, k, v, mask, scaling=self.scaling, dropout=0.0, **kwargs)
        return self.o(y.flatten(-2))


class Block(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.mix = Attention(config, layer_idx)
        self.mlp = nn.Sequential(nn.LayerNorm(config.hidden_size), nn.Linear(config.hidden_size, config.hidden_size), nn.GELU())

    def forward(self, x, **kwargs):
        x = x + self.mix(self.norm(x), **kwargs)
        return x + self.mlp(x)


class OwnPreTrainedModel(PreTrainedModel):
    config_class, base_model_prefix = OwnConfig, "decoder"
    _supports_sdpa = _supports_flex_attn = _supports_attention_backend = True


class OwnModel(OwnPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.angles = LlamaRotaryEmbedding(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def set_input_embeddings(self, module):
        self.embed = module

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None, use_cache=None, **kwargs
    ):
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(x.shape[1], device=x.device)[None] + seen
        mask = create_causal_mask(
            config=self.config, inputs_embeds=x, attention_mask=attention_mask, past_key_values=past_key_values, position_ids=position_ids
        )
        angles = self.angles(x, position_ids)
        for block in self.blocks:
            x = block(x, mask=mask, angles=angles, past_key_values=past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=past_key_values)


class OwnForCausalLM(OwnPreTrainedModel, GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.decoder = OwnModel(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids=None, labels=None, **kwargs):
        kwargs.pop("logits_to_keep", None)
        output = self.decoder(input_ids=input_ids, **kwargs)
        logits = self.head(output.last_hidden_state)
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=output.past_key_values)
"""
TURN = {
    "halves": "half = x.shape[-1] // 2; return x * cos[:, None] + torch.cat((-x[..., half:], x[..., :half]), -1) * sin[:, None]",
    "pairs": "cos, sin = (z[:, None, :, : x.shape[-1] // 2] for z in (cos, sin)); a, b = x[..., ::2], x[..., 1::2]; "
    "return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)",
    "backwards": "half = x.shape[-1] // 2; return x * cos[:, None] - torch.cat((-x[..., half:], x[..., :half]), -1) * sin[:, None]",
}
"""Ways to turn queries and keys: two that others use too, and one that nobody does."""


def write(folder, turn: str):
    """Put configuration and code of such a model into `folder`."""
    (folder / "configuration_own.py").write_text(CONFIGURATION)
    (folder / "modeling_own.py").write_text(MODELING.replace("{turn}", TURN[turn]))
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    return {"model_type": "own_decoder", "auto_map": auto_map, "num_hidden_layers": 2}
