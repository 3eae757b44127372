import dataclasses

import pytest
import torch

from hf_posenc.encodings import create

AUTHORS = [
    [0.9487196803092957, 0.2968140244483948, 0.2806435227394104, 0.6513258218765259],
    [0.2806435227394104, -0.9652961492538452, -0.9487196803092957, -0.6559575796127319],
]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
def test_odd_heads_score_the_imaginary_part(geometry, random_qk, shared, interleaved):
    """Im(q conj(k) exp(i theta (i - j))) pair by pair, with complex numbers."""
    encoding = create("rope_pp", dataclasses.replace(geometry, interleaved=interleaved), shared=shared)
    q, k, pos = random_qk(geometry, 9)
    scores = encoding.scores(q, k, pos + 50, pos + 50)
    theta = 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    real, imag = (slice(0, 8, 2), slice(1, 8, 2)) if interleaved else (slice(0, 4), slice(4, 8))
    for head in range(4):
        x = q[1, head - head % 2 if shared else head, 7]
        y = k[1, head // 2, 2]
        s = (torch.complex(x[real], x[imag]) * torch.complex(y[real], y[imag]).conj() * torch.exp(5j * theta)).sum() / 8**0.5
        assert scores[1, head, 7, 2].item() == pytest.approx((s.imag if head % 2 else s.real).item(), rel=1e-5)


def test_numbers_of_the_authors(tiny):
    """`apply_rotary_pos_emb` of OpenMOSS/rope_pp with imag_mode "imag2", for q = sin(0), sin(1) ... at position 5."""
    q = torch.arange(4 * 16.0).sin().view(1, 4, 1, 16)
    encoding = create("rope_pp", dataclasses.replace(tiny, num_kv_heads=2), shared=True)
    turned, _ = encoding.rotate(q, q, torch.tensor([[5]]), torch.tensor([[5]]))
    torch.testing.assert_close(turned[0, :2, 0, [0, 3, 8, 15]], torch.tensor(AUTHORS), atol=1e-5, rtol=0)


def test_keys_are_those_of_rope(geometry, random_qk):
    _, k, pos = random_qk(geometry, 9)
    assert torch.equal(create("rope_pp", geometry).cached_key(k, pos), create("rope", geometry).cached_key(k, pos))


@pytest.mark.parametrize("heads, groups, options", [(3, 3, {}), (4, 4, {"shared": True}), (6, 2, {"shared": True})])
def test_heads_come_two_by_two(geometry, heads, groups, options):
    with pytest.raises(ValueError, match="two by two"):
        create("rope_pp", dataclasses.replace(geometry, num_heads=heads, num_kv_heads=groups), **options)
