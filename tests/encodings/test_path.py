import math

import pytest
import torch
from torch.nn import functional as F

from hf_posenc.encodings import Geometry, create
from hf_posenc.encodings.contextual import path

AUTHORS = [  # weights of query 6 by `naive_path_attn` of flash-linear-attention, with what is made below
    [0.0277548, 0.3512718, 0.0242270, 0.3204634, 0.0329881, 0.1937105, 0.0495842],
    [0.1885158, 0.0968261, 0.0896954, 0.2053070, 0.0462813, 0.3507792, 0.0225953],
    [0.2503885, 0.0689713, 0.1132483, 0.1604517, 0.0506270, 0.3222871, 0.0340261],
    [0.2417263, 0.0245731, 0.2930768, 0.0249888, 0.2338708, 0.0376771, 0.1440871],
]
FORGETTING = [  # its gates times sqrt(D), which it divides by
    [0.0275481, 0.3496149, 0.0241766, 0.3206407, 0.0330964, 0.1948960, 0.0500271],
    [0.1873469, 0.0964161, 0.0895037, 0.2053212, 0.0463856, 0.3522895, 0.0227372],
    [0.2491890, 0.0687462, 0.1130782, 0.1605189, 0.0507405, 0.3235201, 0.0342072],
    [0.2407060, 0.0245035, 0.2927316, 0.0250049, 0.2344152, 0.0378183, 0.1448207],
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
                        w = F.normalize(encoding.up[g] @ encoding.down @ x[b, j], dim=0)
                        strength = 2 / (1 + math.exp(-float(encoding.u[g] @ x[b, j] + encoding.c[g])))
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


@pytest.mark.parametrize("options", [{"rank": 0}, {"bias": "open"}, {"forget": 1}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("path", geometry, **options)
