import math

import pytest
import torch
from tiny import tiny_model

import hf_posenc
from hf_posenc.encodings import Geometry, create
from hf_posenc.patching import patch_of

AUTHORS = [1.0394958258, 0.550219655, -0.4079385698, -0.9507831931, -0.6930225492, 0.3016177118, 0.9680724144, 0.7127931118]
"""What the authors' module (WNQzhu/PSC) makes of cos(0, 1, 2 ...), with the sines and cosines of 0, 1, 2 ... for matrices."""


def test_numbers_of_the_authors_code():
    psc = create("psc", Geometry(hidden_size=8, num_heads=2), base="rope")
    with torch.no_grad():
        psc.q_up.copy_(torch.arange(32.0).sin().view(2, 4, 4)), psc.q_down.copy_(torch.arange(32.0).cos().view(2, 4, 4))
        x, pos = torch.arange(8.0).cos().view(1, 2, 1, 4), torch.zeros(1, 1, dtype=torch.long)
        q, _ = psc.rotate(x, x, pos, pos)
    torch.testing.assert_close(q.flatten(), torch.tensor(AUTHORS), rtol=0, atol=1e-6)


def test_scores(geometry, random_qk):
    """Calibrated number by number in float64, then turned by the base."""
    psc, yarn = (create(name, geometry, factor=4.0).double() for name in ("psc", "yarn"))
    with torch.no_grad():
        for parameter in psc.parameters():
            parameter.copy_(torch.randn_like(parameter) / 3)
    q, k, pos = random_qk(geometry, 9)

    def calibrated(x, up, down):
        hidden = torch.stack([x[:, h] @ up[h] for h in range(x.shape[1])], 1)
        hidden = hidden / (1 + (-hidden).exp())
        shift = torch.stack([hidden[:, h] @ down[h] for h in range(x.shape[1])], 1)
        return x * (1 + (1 - 2 / (1 + (2 * shift).exp())) / 2)

    with torch.no_grad():
        expected = yarn.scores(calibrated(q, psc.q_up, psc.q_down), calibrated(k, psc.k_up, psc.k_down), pos, pos)
        torch.testing.assert_close(psc.scores(q, k, pos, pos), expected, rtol=0, atol=1e-9)


def test_starts_as_its_base(geometry, random_qk):
    q, k, pos = random_qk(geometry, 9)
    for base, options in (("rope", {}), ("yarn", {"factor": 4.0}), ("linear", {"target_length": 64})):
        psc, plain = create("psc", geometry, base=base, **options), create(base, geometry, **options)
        assert torch.equal(psc.scores(q, k, pos, pos).detach(), plain.scores(q, k, pos, pos))
        assert (psc.starts_as, psc.context_length) == ("" if options else base, plain.context_length)
        assert (psc.frequencies(), psc.rope_parameters()) == (None, None)


@torch.no_grad()
def test_logits_right_after_the_patch(batch):
    psc, yarn = (hf_posenc.patch(tiny_model("llama"), name, factor=4.0) for name in ("psc", "yarn"))
    ids = batch["input_ids"]
    torch.testing.assert_close(psc(ids).logits, yarn(ids).logits)
    assert [tuple(p.encoding.k_up.shape) for p in patch_of(psc).placements] == [(2, 16, 16)] * 2
    bound = 1 / math.sqrt(16 * 16)
    assert bound * 0.9 < patch_of(psc).placements[0].encoding.q_down.abs().max() <= bound


@pytest.mark.parametrize(
    "options, word", [({"base": "alibi"}, "base of 'psc'"), ({"base": "longrope", "factor": 2.0}, "base"), ({}, "factor=")]
)
def test_bad_options(geometry, options, word):
    with pytest.raises(ValueError, match=word):
        create("psc", geometry, **options)
