import numpy as np
import torch

from hf_posenc.encodings import create


def test_scores(geometry, random_qk, rotary_scores):
    """RoPE of queries and keys that are reflected by hand, at frequencies f e^a."""
    encoding, (q, k, pos) = create("lrpe", geometry).double(), random_qk(geometry, 9)
    torch.manual_seed(0)
    encoding.v.data.normal_()
    encoding.log_scale.data[:] = 0.1
    h = [np.eye(8) - 2 * np.outer(v, v) / (v @ v) for v in encoding.v.detach().numpy()]
    reflection = torch.from_numpy(np.stack(h))
    q_new = torch.einsum("hij,bhtj->bhti", reflection.repeat_interleave(2, 0), q)
    k_new = torch.einsum("hij,bhtj->bhti", reflection, k)
    expected = rotary_scores(q_new, k_new, lambda i, j: [(i - j) * 10_000 ** (-n / 4) * np.exp(0.1) for n in range(4)])
    torch.testing.assert_close(encoding.scores(q, k, pos, pos).detach(), expected, atol=1e-5, rtol=1e-5)


def test_at_first_only_the_slowest_pair_turns_the_other_way(geometry, random_qk, rotary_scores):
    """A reflection between rotations reverses them: at distances of tens of tokens that pair hardly turns."""
    q, k, pos = random_qk(geometry, 9)
    speed = [1.0, 0.1, 0.01, -0.001]
    k_new, q_new = (torch.cat((x[..., :7], -x[..., 7:]), -1) for x in (k, q))
    scores = create("lrpe", geometry).scores(q, k, pos, pos).detach()
    mirrored = rotary_scores(q, k, lambda i, j: [(i - j) * f for f in speed])
    torch.testing.assert_close(scores, mirrored, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores, rotary_scores(q_new, k_new, lambda i, j: [(i - j) * abs(f) for f in speed]), atol=1e-5, rtol=1e-5)
