import dataclasses

import pytest
import torch
from transformers import CohereConfig, GPTNeoXConfig
from transformers.models.cohere import modeling_cohere
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.llama import modeling_llama

from hf_posenc.encodings import Geometry, create
from hf_posenc.encodings.rotary.rope import RoPE


def test_half_layout_equals_llama(released, llama_rotary):
    stock = llama_rotary(released, {"rope_type": "default"})
    rope = create("rope", released)
    assert torch.equal(rope.inv_freq, stock.inv_freq)
    q, k = torch.randn(2, 4, 9, released.head_dim), torch.randn(2, 2, 9, released.head_dim)
    pos = torch.randint(0, released.max_positions, (2, 9))
    expected = modeling_llama.apply_rotary_pos_emb(q, k, *stock(q, pos))
    assert all(torch.equal(a, b) for a, b in zip(rope.rotate(q, k, pos, pos), expected, strict=True))


def test_interleaved_layout_equals_cohere(released):
    config = CohereConfig(
        hidden_size=released.hidden_size, num_attention_heads=4, rope_parameters={"rope_type": "default", "rope_theta": released.theta}
    )
    rope = create("rope", dataclasses.replace(released, interleaved=True))
    q, k = torch.randn(2, 4, 9, released.head_dim), torch.randn(2, 4, 9, released.head_dim)
    pos = torch.randint(0, released.max_positions, (2, 9))
    cos, sin = modeling_cohere.CohereRotaryEmbedding(config)(q, pos)
    expected = modeling_cohere.apply_rotary_pos_emb(q, k, cos, sin)
    assert all(torch.equal(a, b) for a, b in zip(rope.rotate(q, k, pos, pos), expected, strict=True))


def test_partial_equals_gpt_neox():
    parameters = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}
    config = GPTNeoXConfig(hidden_size=128, num_attention_heads=4, rope_parameters=parameters)
    geometry = Geometry(hidden_size=128, num_heads=4)
    q, k, pos = torch.randn(1, 4, 9, 32), torch.randn(1, 4, 9, 32), torch.arange(9)[None]
    cos, sin = modeling_gpt_neox.GPTNeoXRotaryEmbedding(config)(q, pos)
    expected = modeling_gpt_neox.apply_rotary_pos_emb(q, k, cos, sin)
    native = create("rope", dataclasses.replace(geometry, rotary_dim=8))
    chosen = create("rope", geometry, partial=0.25)
    for rope in (native, chosen):
        assert all(torch.equal(a, b) for a, b in zip(rope.rotate(q, k, pos, pos), expected, strict=True))
    assert chosen.rope_parameters() == parameters
    assert "partial_rotary_factor" not in native.rope_parameters()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("options", [{}, {"theta": 500.0}, {"partial": 0.5}])
def test_scores_are_complex_products(geometry, random_qk, rotary_scores, interleaved, options):
    geometry = dataclasses.replace(geometry, interleaved=interleaved)
    q, k, pos = random_qk(geometry, 12)
    width = 4 if "partial" in options else 8
    frequencies = [options.get("theta", 10_000.0) ** (-2 * n / width) for n in range(width // 2)]
    expected = rotary_scores(q, k, lambda i, j: [(i - j) * f for f in frequencies], interleaved)
    torch.testing.assert_close(create("rope", geometry, **options).scores(q, k, pos, pos), expected, rtol=0, atol=1e-6)


def test_keeps_the_scaling_of_the_model(yarned, random_qk, rotary_scores):
    rope = create("rope", yarned)
    q, k, pos = random_qk(yarned, 6)
    expected = 1.25**2 * rotary_scores(q, k, lambda i, j: [(i - j) * f for f in yarned.frequencies])
    torch.testing.assert_close(rope.scores(q, k, pos, pos), expected, rtol=0, atol=1e-6)
    assert rope.rope_parameters() == dict(yarned.rope_parameters)


@pytest.mark.parametrize("options", [{"theta": 500.0}, {"partial": 0.5}])
def test_refuses_to_change_a_scaled_rope(yarned, options):
    with pytest.raises(ValueError, match="already scales its RoPE"):
        create("rope", yarned, **options)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_refuses_frequencies_that_depend_on_the_length(yarned, rope_type):
    with pytest.raises(ValueError, match="depends on the length"):
        create("rope", dataclasses.replace(yarned, rope_type=rope_type))


@pytest.mark.parametrize(
    "options", [{"theta": 0}, {"theta": float("nan")}, {"partial": 1.5}, {"partial": 0}, {"partial": 0.1}, {"partial": 0.4}]
)
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("rope", geometry, **options)


def test_odd_head():
    with pytest.raises(ValueError, match="odd: 7"):
        create("rope", Geometry(hidden_size=14, num_heads=2))


def test_angles_are_kept_for_the_next_layer_and_for_no_other_positions(geometry):
    rope, other = create("rope", geometry), create("rope", geometry, theta=500.0)
    x, pos = torch.randn(1, 4, 6, 8), torch.arange(6)[None]
    first = rope.rotate_one(x, pos)
    assert torch.equal(rope.rotate_one(x, pos), first)
    assert not torch.allclose(other.rotate_one(x, pos), first)
    assert not torch.allclose(rope.rotate_one(x, pos, place=lambda p: p / 2), first)
    pos += 3
    assert torch.equal(rope.rotate_one(x, pos), rope.rotate_one(x, torch.arange(3, 9)[None]))


def test_angles_of_a_long_text_are_not_kept(geometry):
    rope, pos = create("rope", geometry), torch.arange(5000)[None]
    rope.rotate_one(torch.randn(1, 4, 5000, 8), pos)
    assert not vars(pos).get("posenc_kept")


class OwnPace(RoPE):
    """A RoPE that is slower in each further head, and half as fast in each further layer."""

    name = "own_pace"
    per_layer = True

    def inverse_frequencies(self):
        paces = 0.5**self.geometry.layer / torch.arange(1, self.geometry.num_kv_heads + 1)
        return paces[:, None] * super().inverse_frequencies()


@pytest.mark.parametrize("layer", [0, 2])
def test_each_key_head_may_have_frequencies_of_its_own(geometry, random_qk, rotary_scores, layer):
    q, k, pos = random_qk(geometry, 7)
    own = OwnPace(dataclasses.replace(geometry, layer=layer))
    own.reset_buffers()
    scores = own.scores(q, k, pos, pos)
    for head in range(4):
        group = head // 2
        expected = rotary_scores(
            q[:, [head]], k[:, [group]], lambda i, j, g=group: [(i - j) * 10_000.0 ** (-n / 4) / 2**layer / (g + 1) for n in range(4)]
        )
        torch.testing.assert_close(scores[:, [head]], expected, rtol=0, atol=1e-6)
    assert own.frequencies() is None


def test_the_layer_makes_no_other_geometry(geometry):
    second = dataclasses.replace(geometry, layer=1)
    assert (second, repr(second), hash(second)) == (geometry, repr(geometry), hash(geometry))
