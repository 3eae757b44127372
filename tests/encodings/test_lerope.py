import pytest
import torch
from tiny import tiny_model

import hf_posenc
from hf_posenc.encodings import create
from hf_posenc.patching import patch_of


def test_scores(geometry, random_qk, rotary_scores):
    q, k, pos = random_qk(geometry, 12)
    lerope = create("lerope", geometry).double()
    lerope.log_scale.data.copy_(torch.tensor([0.1, -0.3, 2.0, 0.0]))
    turned = [1.1051709180756477, 0.07408182206817179, 0.0738905609893065, 0.001]  # e^a theta^(-2k/r)
    expected = rotary_scores(q, k, lambda i, j: [(i - j) * f for f in turned])
    torch.testing.assert_close(lerope.scores(q, k, pos, pos), expected, rtol=0, atol=1e-6)


def test_stands_on_the_scaling_of_the_model(yarned, random_qk):
    q, k, pos = random_qk(yarned, 12)
    lerope, rope = (create(name, yarned) for name in ("lerope", "rope"))
    assert torch.equal(lerope.scores(q, k, pos, pos), rope.scores(q, k, pos, pos))
    assert (lerope.frequencies(), lerope.rope_parameters()) == (None, None)


def test_no_angles_are_left_over_when_the_frequencies_change(geometry):
    lerope, pos = create("lerope", geometry).requires_grad_(False), torch.arange(6)[None]
    x = torch.randn(1, 4, 6, 8)
    first = lerope.rotate_one(x, pos)
    lerope.log_scale += 0.5
    assert not torch.allclose(lerope.rotate_one(x, pos), first)


def test_all_layers_share_one_set(batch):
    model = hf_posenc.patch(tiny_model("llama"), "lerope", layers="all")
    (placement,) = patch_of(model).placements
    assert placement.layers == (0, 1) and placement.encoding.log_scale.shape == (8,)


def test_half_precision_keeps_the_angles_of_a_fresh_patch(geometry):
    x, pos = torch.randn(1, 4, 6, 8, dtype=torch.bfloat16), 5000 + torch.arange(6)[None]
    lerope, rope = (create(name, geometry).to(torch.bfloat16) for name in ("lerope", "rope"))
    assert torch.equal(lerope.rotate_one(x, pos), rope.rotate_one(x, pos))


def test_has_no_options(geometry):
    with pytest.raises(ValueError, match="takes no options"):
        create("lerope", geometry, theta=500.0)
