import numpy as np
import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hf_posenc.encodings import Geometry, create


@pytest.mark.parametrize("factor", [1.0, 2.0, 6.5])
def test_equals_transformers(released, llama_rotary, factor):
    dynamic = create("dynamic_ntk", released, factor=factor, step=1)
    config = llama_rotary(released, {"rope_type": "dynamic", "factor": factor}).config
    native = released.max_positions
    for n in (1, native - 1, native, native + 1, 2 * native, 5 * native + 3):
        ours, theirs = dynamic.frequencies_for(torch.tensor(n - 1)), ROPE_INIT_FUNCTIONS["dynamic"](config, "cpu", seq_len=n)[0]
        torch.testing.assert_close(ours, theirs, rtol=0 if n <= native else 3e-7, atol=0)


def frequencies(tokens, factor, native=16, width=8):
    scale = factor * max(tokens, native) / native - (factor - 1)
    return (10_000.0 * scale ** (width / (width - 2))) ** (-2 * np.arange(width // 2) / width)


def test_each_row_has_the_frequencies_of_its_length(geometry, random_qk, rotary_scores):
    q, k, pos = random_qk(geometry, 40)
    expected = rotary_scores(q, k, lambda i, j: (i - j) * frequencies(i + 1, 3.0))
    scores = create("dynamic_ntk", geometry, factor=3.0, step=1).scores(q, k, pos, pos)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("step", [None, 1, 5, 16])
def test_as_decoded_as_evaluated(geometry, random_qk, step):
    dynamic = create("dynamic_ntk", geometry, factor=2.0, step=step)
    q, k, pos = random_qk(geometry, 40)
    full = dynamic.scores(q, k, pos, pos)
    for n in range(1, 41):
        part = dynamic.scores(q[:, :, :n], k[:, :, :n], pos[:, :n], pos[:, :n])
        torch.testing.assert_close(full[:, :, n - 1, :n], part[:, :, -1], rtol=0, atol=1e-12)


def test_step_rounds_the_length_up(geometry):
    dynamic, paper = (create("dynamic_ntk", geometry, factor=2.0, step=step) for step in (5, 1))
    lengths = torch.tensor([16] * 16 + [21] * 5 + [26] * 5 + [31] * 5)
    assert torch.equal(dynamic.frequencies_for(torch.arange(31)), paper.frequencies_for(lengths - 1))
    changes = [16, 21, 26, 31]
    for first in range(31):
        assert list(dynamic.changes(first, 32)) == [x for x in changes if x > first]
    assert create("dynamic_ntk", geometry, factor=2.0).step == 1


def test_is_no_stock_scheme(geometry):
    assert create("dynamic_ntk", geometry, factor=2.0).rope_parameters() is None


@pytest.mark.parametrize("options", [{"factor": 0.5}, {"factor": 2.0, "step": 0}, {"factor": 2.0, "step": 1.5}, {"step": 1}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=r"step must|factor"):
        create("dynamic_ntk", geometry, **options)


def test_refuses_a_scaled_model(yarned):
    with pytest.raises(ValueError, match="does not compose"):
        create("dynamic_ntk", yarned, factor=2.0)


@pytest.mark.parametrize(
    "name, options",
    [("dynamic_ntk", {"factor": 4.0}), ("dynamic_ntk", {"factor": 4.0, "step": 1}), ("dynamic_yarn", {}), ("longrope", {"factor": 4.0})],
)
def test_a_row_of_one_query_has_the_numbers_of_a_pass_over_the_text(name, options):
    """To the bit: whatever is decoded beside it, and however long the text that it was evaluated in."""
    encoding = create(name, Geometry(hidden_size=512, num_heads=4, theta=500_000.0, max_positions=256), **options)
    k = torch.randn(2, 4, 3, 128)
    for rows in ([255, 256], [303, 777], [0, 1024]):
        q_pos = torch.tensor(rows)[:, None]
        k_pos = q_pos - torch.arange(3)
        (alone,) = encoding.regions(q_pos, k_pos)
        assert alone.keys is None and alone.queries is None
        whole, met = torch.arange(max(rows) + 1).expand(2, -1), 0
        for region in encoding.regions(whole, whole):
            for b, position in enumerate(rows):
                if region.queries is None or region.queries[0] <= position < region.queries[1]:
                    turned = [x.rotate(k[:, :, :1], k, q_pos, k_pos) for x in (alone, region)]
                    assert all(torch.equal(one[b], other[b]) for one, other in zip(*turned, strict=True))
                    met += 1
        assert met == 2
