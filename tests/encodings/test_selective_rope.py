import math

import pytest
import torch
from tiny import off_start, started, tiny_model

import hf_posenc
from hf_posenc.encodings import Geometry, create

# SelectiveRoPE(8, 32, 4, phi_proj_rank=3, use_bias=True) of timurcarstensen/selective-rope for query 5, with the weights below
AUTHORS = [
    [-1.4025556, -1.2918530, -0.21766803, 0.11968181, 0.44138712, 1.1759814],
    [-1.1466535, -0.58840430, 0.00029653733, 0.66923875, 1.1967688, 1.3216639],
    [-0.26836425, -0.83985806, 0.48101658, 0.48022604, 1.1964592, 1.3944924],
    [-0.61320472, -0.61177242, -0.097484834, 0.78075993, 1.5614638, 1.7331686],
]
GATED = [
    [-1.1758193, -0.8774500, -0.6324058, -0.1089557, 0.6918288, 1.1759814],
    [-1.3597617, -0.7720171, -0.1044012, 0.6181434, 1.1769830, 1.3216639],
    [-0.9909288, 0.0037455, -0.2154540, 0.7930589, 1.1841708, 1.3944924],
    [-0.7646655, -0.6223556, 0.0430236, 0.9126711, 1.5898678, 1.7331686],
]


def wave(*shape):
    return torch.arange(torch.Size(shape).numel()).float().sin().view(shape)


@pytest.mark.parametrize("gate, expected", [(False, AUTHORS), (True, GATED)])
def test_equals_the_authors_code(gate, expected):
    selective = create("selective_rope", Geometry(32, 4, head_dim=8, theta=500_000.0), rank=3, gate=gate)
    selective.conv.data = wave(16, 4).flip(-1).view(4, 4, 4)  # theirs begins with the earliest token
    selective.down.data, selective.up.data, selective.b.data = wave(3, 32), (wave(16, 3) * 2).view(4, 4, 3), wave(4, 4)
    if gate:
        selective.w.data, selective.d.data = wave(4, 32), wave(4)
    q, x, pos = wave(1, 6, 4, 8).transpose(1, 2), wave(1, 6, 32).cos(), torch.arange(6)[None]
    scores = selective.scores(q, q + 0.5, pos, pos, state=selective.state(x, pos))
    torch.testing.assert_close(scores[0, :, 5], torch.tensor(expected), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"gate": True}])
def test_scores(options, geometry, random_qk):
    """Heads that share a key share their angles."""
    torch.manual_seed(0)
    selective, (q, k, pos) = create("selective_rope", geometry, rank=5, **options).double(), random_qk(geometry, 6)
    for weight in selective.parameters():
        weight.data.normal_()
    x = torch.randn(2, 6, 32, dtype=torch.float64)
    scores = selective.scores(q, k, pos, pos, state=selective.state(x, pos)).detach()
    unit = torch.cat([part / part.norm(dim=-1, keepdim=True) for part in x.split(8, -1)], -1)
    for b in range(2):
        for h in range(4):
            low = (unit[b] @ selective.down.T @ selective.up[h // 2].T).detach()  # [T,r/2]
            taps = selective.conv[h // 2].detach()
            step = torch.stack([sum(taps[:, s] * low[t - s] for s in range(min(4, t + 1))) for t in range(6)])
            step = step if selective.b is None else step + selective.b[h // 2].exp().detach()
            if selective.w is not None:
                step = step / (1 + torch.exp(-(unit[b] @ selective.w[h // 2] + selective.d[h // 2]).detach()))[:, None]
            for i in range(6):
                for j in range(i + 1):
                    expected = 0.0
                    for n in range(4):
                        angle = float(step[j + 1 : i + 1, n].sum()) * 10_000 ** (-n / 4)
                        one = complex(q[b, h, i, n], q[b, h, i, n + 4])
                        other = complex(k[b, h // 2, j, n], k[b, h // 2, j, n + 4])
                        expected += (one * other.conjugate() * complex(math.cos(angle), math.sin(angle))).real
                    assert math.isclose(scores[b, h, i, j].item(), expected / math.sqrt(8), abs_tol=1e-6)


@pytest.mark.parametrize("base, options", [("rope", {}), ("nope", {"bias": False, "gate": True})])
def test_starts_as(base, options):
    encoding, logits = started("selective_rope", **options)
    assert encoding.starts_as == base
    torch.testing.assert_close(logits, started(base)[1])


@pytest.mark.parametrize("options", [{"rank": 0}, {"taps": 0}, {"bias": 1}, {"gate": "gla"}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("selective_rope", geometry, **options)


def test_stands_on_the_scaling_of_the_model(yarned, random_qk):
    selective, (q, k, pos) = create("selective_rope", yarned), random_qk(yarned, 9)
    scores = selective.scores(q, k, pos, pos, state=selective.state(torch.randn(2, 9, 32, dtype=torch.float64), pos))
    torch.testing.assert_close(scores, create("rope", yarned).scores(q, k, pos, pos), rtol=1e-5, atol=1e-5)
    assert (selective.starts_as, create("selective_rope", yarned, bias=False).starts_as) == ("rope", "")


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_the_convolution_goes_on_from_the_cache(family):
    """In windows too, whose first keys have let go of the tokens before them, and no row reaches into its padding."""
    model = off_start(hf_posenc.patch(tiny_model(family), "selective_rope"))
    ids = torch.randint(3, 60, (2, 20), generator=torch.Generator().manual_seed(0))
    whole = model(ids).logits
    cache = model(ids[:, :9], use_cache=True).past_key_values
    for t in range(9, 20):
        torch.testing.assert_close(model(ids[:, t : t + 1], past_key_values=cache).logits[:, 0], whole[:, t], rtol=1e-4, atol=1e-4)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, :7] = 0
    cache = model(ids[:, :15], attention_mask=mask[:, :15], use_cache=True).past_key_values
    after = model(ids[:, 15:], attention_mask=mask, past_key_values=cache).logits
    torch.testing.assert_close(after[1], model(ids[1:, 7:]).logits[0, 8:], rtol=1e-4, atol=1e-4)
    packed = model(ids[:1], position_ids=torch.cat((torch.arange(8), torch.arange(12)))[None]).logits[0, 8:]
    torch.testing.assert_close(packed, model(ids[:1, 8:]).logits[0], rtol=1e-4, atol=1e-4)


def test_the_convolution_goes_on_from_a_cropped_cache():
    model = off_start(hf_posenc.patch(tiny_model("llama"), "selective_rope"))
    ids = torch.arange(3, 20)[None]
    cache = model(torch.cat((ids[:, :9], ids.flip(-1)), 1), use_cache=True).past_key_values
    cache.crop(-17)
    torch.testing.assert_close(model(ids[:, 9:], past_key_values=cache).logits, model(ids).logits[:, 9:], rtol=1e-4, atol=1e-4)
