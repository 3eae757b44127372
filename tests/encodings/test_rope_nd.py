import numpy as np
import pytest
import torch
from tiny import started, tiny_model

import hf_posenc
from hf_posenc.encodings import Geometry, create


@pytest.mark.parametrize(
    "name, options, axis, frequency",
    [
        ("rope_nd", {"axes": 3}, lambda n: n % 3, lambda n: 10_000 ** (-n / 4)),
        ("rope_nd", {"axes": 2, "layout": "axial"}, lambda n: n // 2, lambda n: 10_000 ** (-(n % 2) / 2)),
        ("rope_2d", {}, lambda n: n // 2, lambda n: 10_000 ** (-(n % 2) / 2)),
        ("mrope", {"sections": [2, 1, 1]}, lambda n: [0, 0, 1, 2][n], lambda n: 10_000 ** (-n / 4)),
        ("mrope", {"sections": [2, 1, 1], "interleaved": True}, lambda n: [0, 1, 2, 0][n], lambda n: 10_000 ** (-n / 4)),
    ],
)
def test_scores(geometry, random_qk, rotary_scores, name, options, axis, frequency):
    """Each pair turns by the distance on its axis times its frequency."""
    encoding, (q, k, _) = create(name, geometry, **options), random_qk(geometry, 9)
    pos = torch.randint(0, 40, (encoding.axes, 1, 9), generator=torch.Generator().manual_seed(0))
    expected = rotary_scores(q, k, lambda i, j: [float(pos[axis(n), 0, i] - pos[axis(n), 0, j]) * frequency(n) for n in range(4)])
    scores = encoding.scores(q, k, pos.expand(-1, 2, -1), pos.expand(-1, 2, -1))
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    assert np.isfinite(scores.numpy()).all()


@pytest.mark.parametrize("name, options", [("rope_nd", {}), ("rope_nd", {"axes": 3}), ("mrope", {}), ("mrope", {"interleaved": True})])
@torch.no_grad()
def test_text_alone_is_rope_bit_for_bit(name, options):
    rope = tiny_model("llama")
    other = hf_posenc.patch(tiny_model("llama"), name, **options)
    hf_posenc.patching.apply(hf_posenc.patching.patch_of(rope), hf_posenc.patching.Request("rope", {}, (0, 1)), native_slot=False)
    ids = torch.arange(3, 20)[None]
    assert torch.equal(other(ids).logits, rope(ids).logits)
    assert started(name, **options)[0].starts_as == "rope"


@pytest.mark.parametrize("family, interleaved", [("qwen2_vl", False), ("qwen3_vl", True)])
def test_is_that_of_transformers(family, interleaved, random_qk):
    """The cosines and sines of the family's own rotary module, at positions of images."""
    import importlib

    modeling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    configs = importlib.import_module(f"transformers.models.{family}.configuration_{family}")
    title = {"qwen2_vl": "Qwen2VL", "qwen3_vl": "Qwen3VL"}[family]
    sections = [16, 24, 24] if family == "qwen2_vl" else [24, 20, 20]
    parameters = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections}
    sizes = {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = getattr(configs, f"{title}TextConfig")(**sizes, rope_parameters=parameters)
    config.head_dim = 128
    rotary_class = getattr(modeling, "Qwen2VLRotaryEmbedding" if family == "qwen2_vl" else "Qwen3VLTextRotaryEmbedding")
    geometry = Geometry(256, 2, 1, 128)
    encoding = create("mrope", geometry, sections=sections, interleaved=interleaved)
    pos = torch.randint(0, 90, (3, 2, 9), generator=torch.Generator().manual_seed(0))
    q, k, _ = (x.float() if x.is_floating_point() else x for x in random_qk(geometry, 9))
    cos, sin = rotary_class(config)(q, pos)
    expected = modeling.apply_rotary_pos_emb(q, k, cos, sin)
    torch.testing.assert_close(encoding.turn(q, pos), expected[0])
    torch.testing.assert_close(encoding.turn(k, pos), expected[1])


@torch.no_grad()
def test_positions_on_axes_reach_the_attention_and_the_cache():
    """On a Llama: whole, in pieces after a KV cache, and with the positions of the text in front."""
    model = hf_posenc.patch(tiny_model("llama"), "mrope")
    ids = torch.arange(3, 16)[None]
    pos = torch.stack((torch.arange(13), torch.arange(13) // 3, torch.arange(13) % 3))[:, None]
    whole = model(ids, position_ids=pos).logits
    assert (whole - model(ids).logits).abs().max() > 1e-3
    torch.testing.assert_close(model(ids, position_ids=torch.cat((torch.arange(13)[None, None], pos))).logits, whole)
    first = model(ids[:, :9], position_ids=pos[..., :9], use_cache=True)
    rest = model(ids[:, 9:], position_ids=pos[..., 9:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat((first.logits, rest.logits), 1), whole, atol=1e-5, rtol=1e-4)


def test_mixed_pairs_turn_with_all_axes(geometry, random_qk, rotary_scores):
    """By f_k (s_x dx + s_y dy), with the s of each key-value head, in float64."""
    encoding, (q, k, _) = create("rope_2d", geometry, layout="mixed").double(), random_qk(geometry, 9)
    torch.manual_seed(0)
    encoding.share.data.normal_()
    pos = torch.randint(0, 40, (2, 1, 9), generator=torch.Generator().manual_seed(0))
    scores = encoding.scores(q, k, pos.expand(-1, 2, -1), pos.expand(-1, 2, -1)).detach()
    for group in range(2):
        s = encoding.share[group].detach().numpy() + np.array([[1, 0, 1, 0], [0, 1, 0, 1]])

        def angle(i, j, s=s):
            return [float((pos[:, 0, i] - pos[:, 0, j]).numpy() @ s[:, n]) * 10_000 ** (-n / 4) for n in range(4)]

        expected = rotary_scores(q[:, 2 * group : 2 * group + 2], k[:, group : group + 1], angle)
        torch.testing.assert_close(scores[:, 2 * group : 2 * group + 2], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_mixed_starts_as_rope_and_learns():
    stock, model, ids = tiny_model("llama"), hf_posenc.patch(tiny_model("llama"), "rope_2d", layout="mixed"), torch.arange(3, 20)[None]
    torch.testing.assert_close(model(ids).logits, stock(ids).logits, atol=1e-5, rtol=1e-4)
    with torch.enable_grad():
        model(ids).logits.square().sum().backward()
    grads = [parameter.grad for name, parameter in model.named_parameters() if name.endswith("share")]
    assert len(grads) == 2 and all((grad != 0).all() for grad in grads)


def test_too_few_axes():
    model = hf_posenc.patch(tiny_model("llama"), "mrope")
    with pytest.raises(ValueError, match="'mrope' has 3 axes, but position_ids have 2"):
        model(torch.arange(3, 9)[None], position_ids=torch.zeros(2, 1, 6, dtype=torch.long))


@pytest.mark.parametrize("options", [{"sections": [1, 1, 1]}, {"sections": [0, 2, 2], "interleaved": True}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match="sections"):
        create("mrope", geometry, **options)
    with pytest.raises(ValueError, match="axes = 3 do not divide"):
        create("rope_nd", geometry, axes=3, layout="axial")
