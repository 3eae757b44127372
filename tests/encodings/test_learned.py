import math

import numpy as np
import pytest
import torch
from tiny import started, tiny_model

import hf_posenc
from hf_posenc.encodings import create


def test_adds_the_row_of_the_position(geometry):
    learned = create("learned", geometry)
    x, pos = torch.randn(2, 3, 32), torch.tensor([[0, 1, 15], [4, 4, 2]])
    out = learned.embed(x, pos)
    for b in range(2):
        for t in range(3):
            assert torch.equal(out[b, t], x[b, t] + learned.table[pos[b, t]])
    assert learned.embed(x.bfloat16(), pos).dtype == torch.bfloat16


@pytest.mark.parametrize("rows", [17, 31, 40, 1000])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_longer_table_is_interpolated(geometry, rows, dtype, tolerance):
    table = torch.randn(16, 32, dtype=dtype)
    learned = create("learned", geometry, max_positions=rows)
    learned.adopt(table)
    where = np.linspace(0, 15, rows)
    expected = np.stack([np.interp(where, np.arange(16), column) for column in table.double().numpy().T], 1)
    torch.testing.assert_close(learned.table.double(), torch.from_numpy(expected), rtol=0, atol=tolerance)
    assert torch.equal(learned.table[0], table[0]) and torch.equal(learned.table[-1], table[-1])
    assert learned.table.dtype == dtype and learned.table.requires_grad


@pytest.mark.parametrize("rows, alpha", [(17, 0.4), (100, 0.4), (256, 0.25)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.bfloat16, 4e-2)])
def test_a_longer_table_is_decomposed(geometry, rows, alpha, dtype, tolerance):
    """The first rows stay to the bit; row i n + j is a U[i] + (1 - a) U[j]."""
    table = torch.randn(16, 32, dtype=dtype)
    learned = create("learned", geometry, max_positions=rows, growth="hierarchical", alpha=alpha)
    learned.adopt(table)
    assert torch.equal(learned.table[:16], table) and learned.table.dtype == dtype
    p = table.double().numpy()
    unit = [(p[j] - alpha * p[0]) / (1 - alpha) for j in range(16)]
    expected = np.stack([alpha * unit[t // 16] + (1 - alpha) * unit[t % 16] for t in range(rows)])
    torch.testing.assert_close(learned.table.double(), torch.from_numpy(expected), rtol=0, atol=tolerance)


def test_a_decomposed_table_reaches_its_square(geometry):
    learned = create("learned", geometry, max_positions=257, growth="hierarchical")
    with pytest.raises(ValueError, match=r"a table of 16 positions grows to 256 .*not to max_positions=257"):
        learned.adopt(torch.randn(16, 32))


@torch.no_grad()
def test_growing_by_decomposition_keeps_what_the_model_says_within_its_context():
    model, ids = tiny_model("gpt2"), torch.arange(3, 15)[None]
    stock = model(ids).logits
    hf_posenc.patch(model, "learned", max_positions=40, growth="hierarchical")
    assert torch.equal(model(ids).logits, stock)
    assert model(ids.repeat(1, 3)).logits.isfinite().all()


@pytest.mark.parametrize("rows", [16, 9, 1])
def test_a_shorter_table_is_cut(geometry, rows):
    table = torch.randn(16, 32)
    learned = create("learned", geometry, max_positions=rows)
    learned.adopt(table)
    assert torch.equal(learned.table, table[:rows])
    learned.table.data.zero_()
    assert table.abs().min() > 0
    assert learned.context_length == rows


def test_positions_past_the_table(geometry):
    learned = create("learned", geometry, max_positions=20)
    learned.check_positions(19)
    with pytest.raises(ValueError, match=r"position 20 lies past the learned table of 20 positions.*max_positions=21"):
        learned.check_positions(20)


def test_starts_from_a_normal_distribution(geometry):
    table = create("learned", geometry, max_positions=2000, init_std=0.1).table
    assert (table.mean().item(), table.std().item()) == (pytest.approx(0, abs=2e-3), pytest.approx(0.1, rel=0.02))


def test_starts_from_sinusoids():
    encoding, logits = started("learned", init="sinusoidal", max_positions=20)
    assert encoding.starts_as == "sinusoidal" and torch.equal(logits, started("sinusoidal")[1])
    for t, k in ((0, 0), (7, 0), (19, 5)):
        angle = t * 10_000.0 ** (-2 * k / 64)
        assert encoding.table[t, 2 * k : 2 * k + 2].tolist() == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-6)
    encoding.adopt(torch.randn(8, 64))  # the table of a model
    assert encoding.starts_as == ""


@pytest.mark.parametrize(
    "options",
    [
        {"max_positions": 0},
        {"max_positions": 2.0},
        {"init_std": 0},
        {"init_std": math.nan},
        {"init": "cosine"},
        {"growth": "linear"},
        {"alpha": 1},
    ],
)
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("learned", geometry, **options)
