import math

import pytest
import torch
from tiny import tiny_model

import hf_posenc
from hf_posenc.encodings import create

HEADS, GROUPS, WIDTH, LENGTH = 4, 2, 16, 15


def sinusoid(t, width, scale=1.0):
    """As tensor2tensor and fairseq have it: all sines, then all cosines, the last frequency 1 / 10000."""
    angles = [t * 10_000 ** (-k / (width // 2 - 1)) for k in range(width // 2)]
    return [scale * f(angle) for f in (math.sin, math.cos) for angle in angles]


def attended(queries, keys, values):
    """Causal softmax attention of queries [B,T,H,D] on keys and values [B,T,G,D], one query at a time: [B,T,H*D]."""
    out = torch.zeros_like(queries)
    for b in range(len(queries)):
        for h in range(queries.shape[2]):
            g = h * keys.shape[2] // queries.shape[2]
            for i in range(queries.shape[1]):
                weights = torch.softmax(keys[b, : i + 1, g] @ queries[b, i, h] / math.sqrt(queries.shape[-1]), 0)
                out[b, i, h] = weights @ values[b, : i + 1, g]
    return out.flatten(2)


@torch.no_grad()
def layer_of(model, attention):
    """What the attention of a layer is given and what it returns."""
    found = {}

    def keep(module, args, kwargs, output):
        found.update(x=args[0] if args else kwargs["hidden_states"], output=output[0])

    handle = attention.register_forward_hook(keep, with_kwargs=True)
    model(torch.randint(3, 60, (2, LENGTH), generator=torch.Generator().manual_seed(0)), use_cache=False)
    handle.remove()
    return found["x"], found["output"]


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_attention_of_a_llama_by_its_weights(layer, scale):
    model = hf_posenc.patch(tiny_model("llama").double(), "pia", scale=scale)
    attention = model.model.layers[layer].self_attn
    x, output = layer_of(model, attention)
    infused = x + torch.tensor([sinusoid(t, x.shape[-1], scale) for t in range(LENGTH)], dtype=torch.float64)
    q = (infused @ attention.q_proj.weight.T).view(2, LENGTH, HEADS, WIDTH)
    k = (infused @ attention.k_proj.weight.T).view(2, LENGTH, GROUPS, WIDTH)
    v = (x @ attention.v_proj.weight.T).view(2, LENGTH, GROUPS, WIDTH)
    torch.testing.assert_close(output, attended(q, k, v) @ attention.o_proj.weight.T, rtol=0, atol=2e-5)  # frequencies are float32


@torch.no_grad()
def test_attention_of_a_gpt2_by_its_weights():
    """Queries, keys and values are one projection, and the table by position is gone."""
    model = hf_posenc.patch(tiny_model("gpt2").double(), "pia")
    attention = model.transformer.h[1].attn
    x, output = layer_of(model, attention)
    infused = x + torch.tensor([sinusoid(t, x.shape[-1]) for t in range(LENGTH)], dtype=torch.float64)
    weight, bias = attention.c_attn.weight.split(64, 1), attention.c_attn.bias.split(64)
    q, k, v = ((y @ w + b).view(2, LENGTH, HEADS, WIDTH) for y, w, b in zip((infused, infused, x), weight, bias, strict=True))
    expected = attended(q, k, v) @ attention.c_proj.weight + attention.c_proj.bias
    torch.testing.assert_close(output, expected, rtol=0, atol=2e-5)
    embedded = model.transformer.wte(torch.tensor([[7, 7]]))
    torch.testing.assert_close(model(torch.tensor([[7, 7]]), output_hidden_states=True).hidden_states[0], embedded)


def test_layouts_and_units_are_those_of_the_sinusoids(geometry):
    x, pos = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0)), torch.arange(9)[None]
    for options in ({}, {"layout": "concatenated", "theta": 500.0}, {"unit": "embedding", "scale": 0.5}):
        wanted = create("sinusoidal", geometry, **{"layout": "tensor2tensor"} | options).embed(x, pos)
        torch.testing.assert_close(create("pia", geometry, **options).infuse(x, pos), wanted)


@pytest.mark.parametrize("options", [{"layout": "half"}, {"unit": "token"}, {"theta": -1}, {"scale": 0}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("pia", geometry, **options)
