"""What every encoding keeps that remaps the positions of the model's RoPE."""

import dataclasses

import pytest
import torch

from hf_posenc.encodings import ENCODINGS, create, options_of
from hf_posenc.encodings.remap.base import RemappedRoPE

NAMES = [name for name in ENCODINGS if issubclass(ENCODINGS[name], RemappedRoPE)]
UNTRAINED = [name for name in NAMES if not ENCODINGS[name].needs_training]
"""Those that keep what a model has learned of its neighbours."""


def build(name, geometry):
    """Without the change of temperature that some make besides."""
    return create(name, geometry, **({"log_scaling": False} if "log_scaling" in options_of(ENCODINGS[name]) else {}))


@pytest.mark.parametrize("name", UNTRAINED)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [4, 8])
def test_neighbours_look_as_far_as_they_are(yarned, random_qk, name, interleaved, rotary_dim):
    frequencies = yarned.frequencies[: rotary_dim // 2]
    geometry = dataclasses.replace(yarned, interleaved=interleaved, rotary_dim=rotary_dim, frequencies=frequencies)
    q, k, pos = random_qk(geometry, 60)
    scores, rope = (build(n, geometry).scores(q, k, pos, pos) for n in (name, "rope"))
    near = torch.ones(60, 60).tril().triu(-3).bool()
    torch.testing.assert_close(scores[..., near], rope[..., near], rtol=0, atol=1e-10)
    assert not torch.allclose(scores[..., 20, :4], rope[..., 20, :4])


@pytest.mark.parametrize("name", NAMES)
def test_the_future_is_hidden(geometry, random_qk, name):
    q, k, pos = random_qk(geometry, 40)
    future = torch.ones(40, 40).triu(1).bool()
    assert (build(name, geometry).scores(q, k, pos, pos)[..., future] == -torch.inf).all()


@pytest.mark.parametrize("name", NAMES)
def test_as_decoded_as_evaluated(yarned, random_qk, name):
    encoding = create(name, yarned)
    q, k, pos = random_qk(yarned, 40)
    full = encoding.scores(q, k, pos, pos)
    cache = torch.cat([encoding.cached_key(k[:, :, j : j + 1], pos[:, j : j + 1]) for j in range(40)], 2)
    for i in range(40):
        row = encoding.content_scores(q[:, :, i : i + 1], cache[:, :, : i + 1], pos[:, i : i + 1], pos[:, : i + 1])
        torch.testing.assert_close(full[:, :, i : i + 1, : i + 1], row, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keys", [slice(0, 0), slice(3, 4), slice(7, 31)])
def test_a_region_turns_any_slice_of_keys(yarned, random_qk, name, keys):
    encoding = create(name, yarned)
    q, k, pos = random_qk(yarned, 40)
    for region in encoding.regions(pos, pos):
        queries, turned = region.rotate(q, k, pos, pos)
        again, part = region.rotate(q, k[:, :, keys], pos, pos[:, keys])
        assert torch.equal(again, queries) and part.shape == k[:, :, keys].shape
        torch.testing.assert_close(part, turned[:, :, keys], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_decoding_turns_a_window_of_keys_at_most(geometry, name):
    encoding = create(name, geometry)
    length = 5000 if encoding.any_length else encoding.context_length
    q, k, pos = torch.randn(1, 4, 1, 8), torch.randn(1, 2, length, 8), torch.arange(length)[None]
    for region in encoding.regions(pos[:, -1:], pos):
        if region.rotate(q, k, pos[:, -1:], pos)[1] is not k:
            assert region.pairs(pos[:, -1:], pos).sum() <= geometry.max_positions


@pytest.mark.parametrize("name", NAMES)
def test_angles_do_not_round_with_the_queries(geometry, name):
    encoding = build(name, geometry)
    q, k, pos = torch.randn(1, 4, 30, 8), torch.randn(1, 2, 30, 8), torch.arange(4000, 4030)[None]
    for region in encoding.regions(pos, pos):
        exact = region.rotate(q.double(), k.double(), pos, pos)
        for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 0.03)):
            for turned, expected in zip(region.rotate(q.to(dtype), k.to(dtype), pos, pos), exact, strict=True):
                torch.testing.assert_close(turned.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_refuses_frequencies_that_depend_on_the_length(yarned, name, rope_type):
    with pytest.raises(ValueError, match="depends on the length"):
        create(name, dataclasses.replace(yarned, rope_type=rope_type))
