import math

import numpy as np
import pytest
import torch

from hf_posenc.encodings import create


@pytest.fixture
def seqpe(geometry):
    torch.manual_seed(0)
    made = create("seqpe", geometry, width=8, max_positions=20_000).double()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return made.requires_grad_(False)


def read(seqpe, position):
    """What the encoding adds at a position, in numpy: GPT-2 blocks, one head after the other."""
    w = {name: p.numpy() for name, p in seqpe.named_parameters()}

    def norm(x, name):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w[name + ".weight"] + w[name + ".bias"]

    def linear(x, name):
        return x @ w[name + "weight"].T + w[name + "bias"]

    x = np.stack([w["digit"][int(c)] for c in f"{position:05d}"]) + w["place"]
    x = np.concatenate((x, w["last"][None]))
    for layer in ("reader.layers.0.", "reader.layers.1."):
        attended, (q, k, v) = [], np.split(linear(norm(x, layer + "norm1"), layer + "self_attn.in_proj_"), 3, -1)
        for h in range(4):
            mine = slice(2 * h, 2 * h + 2)
            scores = q[:, mine] @ k[:, mine].T / math.sqrt(2) + np.triu(np.full((6, 6), -np.inf), 1)
            weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
            attended.append(weights @ v[:, mine])
        x = x + linear(np.concatenate(attended, -1), layer + "self_attn.out_proj.")
        y = linear(norm(x, layer + "norm2"), layer + "linear1.")
        y = y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3))) / 2
        x = x + linear(y, layer + "linear2.")
    return linear(norm(x[-1], "reader.norm"), "w.")


def test_reads_the_digits(seqpe):
    x, pos = torch.randn(2, 3, 32, dtype=torch.float64), torch.tensor([[0, 7, 10], [99, 1234, 19_999]])
    out = seqpe.embed(x, pos)
    for b in range(2):
        for t in range(3):
            torch.testing.assert_close((out - x)[b, t], torch.from_numpy(read(seqpe, pos[b, t].item())))


def test_rows_that_share_their_positions_are_read_once(seqpe):
    x, pos = torch.randn(4, 9, 32, dtype=torch.float64), torch.arange(9).expand(4, -1)
    read = []
    handle = seqpe.reader.register_forward_pre_hook(lambda module, args: read.append(len(args[0])))
    shared, own = seqpe.embed(x, pos), seqpe.embed(x, pos.clone())
    handle.remove()
    assert read == [9, 36]
    torch.testing.assert_close(shared, own)


@pytest.mark.parametrize("last, digits", [(9, 1), (10, 2), (19_999, 5)])
def test_digits_for_the_last_position(geometry, last, digits):
    assert create("seqpe", geometry, max_positions=last + 1).place.shape == (digits, 32)
    with pytest.raises(ValueError, match=f'position {last + 1} lies past .*"seqpe", max_positions={last + 2}'):
        create("seqpe", geometry, max_positions=last + 1).check_positions(last + 1)


@pytest.mark.parametrize("options", [{"max_positions": 0}, {"depth": 0}, {"width": 0}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("seqpe", geometry, **options)
