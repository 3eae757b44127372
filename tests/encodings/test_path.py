import math

import pytest
import torch
from torch.nn import functional as F

from hf_posenc.encodings import Geometry, create
from hf_posenc.encodings.contextual import path

AUTHORS = [  # weights of query 6 by `naive_path_attn` of flash-linear-attention, of what its layer makes of the weights below
    [0.0262339, 0.3456978, 0.0235233, 0.3228035, 0.0286740, 0.1975556, 0.0555119],
    [0.1763585, 0.0984975, 0.0835247, 0.2112387, 0.0405332, 0.3634952, 0.0263522],
    [0.2365988, 0.0702714, 0.1185365, 0.1636195, 0.0517242, 0.3290873, 0.0301623],
    [0.2349712, 0.0245656, 0.3055682, 0.0256549, 0.2374549, 0.0382404, 0.1335447],
]
FORGETTING = [  # its gates times sqrt(D), which it divides by
    [0.0260359, 0.3440318, 0.0234720, 0.3229489, 0.0287652, 0.1987443, 0.0560019],
    [0.1752392, 0.0980660, 0.0833339, 0.2112222, 0.0406185, 0.3650065, 0.0265137],
    [0.2354504, 0.0700376, 0.1183509, 0.1636777, 0.0518369, 0.3303254, 0.0303210],
    [0.2339861, 0.0244967, 0.3052171, 0.0256721, 0.2380145, 0.0383848, 0.1342284],
]


def wave(*shape):
    return torch.arange(torch.Size(shape).numel()).float().sin().view(shape)


def lively(geometry, **options):
    torch.manual_seed(0)
    encoding = create("path", geometry, rank=5, **options).double()
    for weight in encoding.parameters():
        weight.data.normal_()
    return encoding


@pytest.mark.parametrize("forget, expected", [(False, AUTHORS), (True, FORGETTING)])
def test_equals_the_authors_code(forget, expected):
    encoding = create("path", Geometry(32, 4, num_kv_heads=2, head_dim=8), rank=3, forget=forget)
    encoding.conv.data = wave(16, 3).flip(-1).view(2, 8, 3)  # theirs begins with the earliest token
    encoding.down.data, encoding.up.data, encoding.u.data = wave(3, 32), wave(2, 8, 3).cos(), wave(2, 32) / 3
    if forget:
        encoding.gate.data = wave(4, 32)
    q, k, x, pos = wave(1, 7, 4, 8).transpose(1, 2), wave(1, 7, 2, 8).transpose(1, 2) + 0.5, wave(1, 7, 32).cos(), torch.arange(7)[None]
    scores = encoding.scores(q, k, pos, pos, state=encoding.state(x, pos))
    torch.testing.assert_close(scores[0, :, 6].softmax(-1), torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 4, 64])
@pytest.mark.parametrize("forget", [False, True])
def test_scores(forget, chunk, geometry, random_qk, monkeypatch):
    """One reflection after another, whatever the chunks."""
    monkeypatch.setattr(path, "CHUNK", chunk)
    encoding, (q, k, pos) = lively(geometry, forget=forget), random_qk(geometry, 9)
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    scores = encoding.scores(q, k, pos, pos, state=encoding.state(x, pos)).detach()
    with torch.no_grad():
        for b in range(2):
            for h in range(4):
                g = h // 2
                for i in range(9):
                    query, gates = q[b, h, i], 0.0
                    for j in range(i, -1, -1):
                        expected = float(query @ k[b, g, j]) / math.sqrt(8) + gates
                        assert math.isclose(scores[b, h, i, j].item(), expected, abs_tol=1e-9)
                        low = [encoding.up[g] @ encoding.down @ x[b, t] for t in range(j, max(-1, j - 3), -1)]
                        w = F.normalize(F.silu(sum(encoding.conv[g, :, s] * part for s, part in enumerate(low))), dim=0)
                        strength = 2 / (1 + math.exp(-float(encoding.u[g] @ x[b, j] + encoding.d[g])))
                        query = query - strength * (query @ w) * w
                        gates += float(F.logsigmoid(encoding.gate[h] @ x[b, j] + encoding.gate_bias[h])) if forget else 0.0


def test_where_nothing_reflects_there_are_no_positions(geometry, random_qk):
    encoding, (q, k, pos) = create("path", geometry, bias=-100.0), random_qk(geometry, 9)
    scores = encoding.scores(q, k, pos, pos, state=encoding.state(torch.randn(2, 9, 32, dtype=torch.float64), pos))
    torch.testing.assert_close(scores, create("nope", geometry).scores(q, k, pos, pos))


@pytest.mark.parametrize("first", [0, 3])
def test_a_block_needs_the_keys_that_it_sees_alone(first, geometry, random_qk, monkeypatch):
    """A window, and queries that are not the last."""
    monkeypatch.setattr(path, "CHUNK", 4)
    encoding, (q, k, pos) = lively(geometry, forget=True), random_qk(geometry, 11)
    state = encoding.state(torch.randn(2, 11, 32, dtype=torch.float64), pos)
    seen = (torch.ones(11, 11).tril() * torch.ones(11, 11).triu(-3)).bool()[None, None]
    whole = encoding.scores(q, k, pos, pos, state=state, seen=seen)
    block, keys = encoding.block(q, k, pos, pos, state=state), slice(first, 9)
    part = block.part(slice(None), slice(6, 8), keys, seen[:, :, 6:8, keys])
    products = create("nope", geometry).scores(q[:, :, 6:8], k[:, :, keys], pos[:, 6:8], pos[:, keys])
    mixed = encoding.mix(products, part)
    visible = seen[:, :, 6:8, keys].expand_as(mixed)
    torch.testing.assert_close(mixed[visible], whole[:, :, 6:8, keys][visible])


@pytest.mark.parametrize("options", [{"rank": 0}, {"taps": 0}, {"bias": "open"}, {"forget": 1}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("path", geometry, **options)
