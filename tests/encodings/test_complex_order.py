import cmath

import pytest
import torch
from texts import text_of
from tiny import started

from hf_posenc.encodings import Geometry, create

IDS, POS = torch.tensor([[3, 17, 3], [60, 0, 5]]), torch.tensor([[0, 1, 15], [7, 300, 4000]])


def embedded(encoding, x):
    return encoding.embed_text(x, text_of(encoding, IDS, pos=POS))


@pytest.mark.parametrize("share, rows, columns", [("none", 61, 16), ("words", 1, 16), ("dimensions", 61, 1)])
def test_turns_each_dimension_by_the_frequency_of_the_word(geometry, share, rows, columns):
    torch.manual_seed(0)
    order = create("complex_order", geometry, share=share)
    assert order.omega.shape == (rows, columns)
    torch.nn.init.normal_(order.omega)
    x = torch.randn(2, 3, 32, dtype=torch.float64)
    out = embedded(order, x)
    for b in range(2):
        for t in range(3):
            for k in range(16):
                omega = order.omega[IDS[b, t] % rows, k % columns].double().item()
                z = complex(*x[b, t, 2 * k : 2 * k + 2].tolist()) * cmath.exp(1j * omega * POS[b, t].item())
                assert out[b, t, 2 * k : 2 * k + 2].tolist() == pytest.approx([z.real, z.imag], abs=1e-8)
    assert embedded(order, x.bfloat16()).dtype == torch.bfloat16


def test_all_words_start_with_the_frequencies_of_the_paper(geometry):
    """And a word of real numbers, as all are in the authors' code, becomes x cos and x sin."""
    order = create("complex_order", geometry)
    omega = torch.tensor([10_000.0 ** (-2 * k / 32) for k in range(16)])
    torch.testing.assert_close(order.omega, omega.expand(61, -1))
    x = torch.randn(2, 3, 16)
    out = embedded(order, torch.stack((x, torch.zeros_like(x)), -1).flatten(-2)).unflatten(-1, (16, 2))
    angle = POS[..., None] * omega
    torch.testing.assert_close(out, torch.stack((x * angle.cos(), x * angle.sin()), -1), rtol=0, atol=2e-3)


def test_starts_without_positions_where_all_frequencies_are_zero():
    encoding, logits = started("complex_order", init="zero")
    assert encoding.starts_as == "nope" and torch.equal(logits, started("nope")[1])


def test_without_a_vocabulary_one_word_stands_for_all():
    assert create("complex_order", Geometry(hidden_size=32, num_heads=4)).omega.shape == (1, 16)


def test_odd_width():
    with pytest.raises(ValueError, match="hidden_size is odd: 15"):
        create("complex_order", Geometry(hidden_size=15, num_heads=1))


@pytest.mark.parametrize("options", [{"share": "all"}, {"init": "normal"}, {"theta": 0}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("complex_order", geometry, **options)
