import numpy as np
import pytest
import torch
from tiny import off_start, tiny_model

import hf_posenc
from hf_posenc.encodings import create


def test_scores(geometry, random_qk, rotary_scores):
    """`rope_nd` of queries and keys that are changed by hand, with an inverse."""
    encoding, (q, k, _) = create("string_cayley", geometry, axes=3).double(), random_qk(geometry, 9)
    torch.manual_seed(0)
    encoding.upper.data.normal_()
    changed = []
    for group in range(2):
        s = np.zeros((8, 8))
        s[np.triu_indices(8, 1)] = encoding.upper[group].detach().numpy()
        s -= s.T
        changed.append(torch.from_numpy((np.eye(8) - s) @ np.linalg.inv(np.eye(8) + s)))
    basis = torch.stack(changed)
    assert np.allclose(basis @ basis.mT, np.eye(8), atol=1e-12)
    pos = torch.randint(0, 40, (3, 1, 9), generator=torch.Generator().manual_seed(0))
    q_new = torch.einsum("hij,bhtj->bhti", basis.repeat_interleave(2, 0), q)
    k_new = torch.einsum("hij,bhtj->bhti", basis, k)
    angle = lambda i, j: [float(pos[n % 3, 0, i] - pos[n % 3, 0, j]) * 10_000 ** (-n / 4) for n in range(4)]  # noqa: E731
    scores = encoding.scores(q, k, pos.expand(-1, 2, -1), pos.expand(-1, 2, -1)).detach()
    torch.testing.assert_close(scores, rotary_scores(q_new, k_new, angle), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@torch.no_grad()
def test_starts_as_rope(family):
    stock, ids = tiny_model(family), torch.arange(3, 20)[None]
    model = hf_posenc.patch(tiny_model(family), "string_cayley")
    torch.testing.assert_close(model(ids).logits, stock(ids).logits, atol=1e-5, rtol=1e-4)
    assert (off_start(model)(ids).logits - stock(ids).logits).abs().max() > 1e-3
