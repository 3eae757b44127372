import numpy as np
import pytest
import torch

from hf_posenc.encodings import create

UP = torch.sin(torch.arange(8 * 16.0)).view(8, 16) * 0.3
DOWN = torch.cos(torch.arange(8 * 16.0)).view(16, 8) * 0.2
AUTHORS = [  # at t = 2, 3 and 4, for these weights, a head of 16 and steps of 0.01, from DAMO-NLP-SG/CLEX
    [0.962150931, 0.217581347, 0.0600653775, 0.0198530126, 0.00652990397, 0.0017844241811, 0.000401077530, 8.7852407887e-05],
    [0.923359573, 0.161986321, 0.0425487012, 0.0160652027, 0.00599625846, 0.0015377101954, 0.000265908340, 4.3718726374e-05],
    [0.884410322, 0.123255268, 0.0316353142, 0.0140308719, 0.00610204320, 0.0015035258839, 0.000204467025, 2.5820605516e-05],
]


def with_weights(geometry, **options):
    clex = create("clex", geometry, **options)
    with torch.no_grad():
        clex.up.copy_(UP), clex.down.copy_(DOWN)
    return clex


@pytest.mark.parametrize("step", [0.25, 0.1])
def test_numbers_of_the_authors_code(tiny, step):
    table = with_weights(tiny, factor=4.0, step=step).table().detach()
    assert torch.equal(table[0], create("rope", tiny).inv_freq.log().exp())
    torch.testing.assert_close(table[1:], torch.tensor(AUTHORS), rtol=2e-5, atol=0)


def test_starts_ntk_aware(released):
    """With the factor 2t - 1, exactly: what is learned is added to it."""
    clex = create("clex", released, factor=3.0)
    for t, frequencies in enumerate(clex.table().detach(), start=1):
        torch.testing.assert_close(frequencies, create("ntk", released, factor=2.0 * t - 1).inv_freq, rtol=2e-5, atol=0)


def test_each_query_has_the_scale_of_its_length(geometry, random_qk, rotary_scores):
    q, k, pos = random_qk(geometry, 40)
    base = [10_000.0 * (2 * t - 1) ** (8 / 6) for t in (1, 2)]
    expected = rotary_scores(q, k, lambda i, j: (i - j) * base[min(i // 16, 1)] ** (-2 * np.arange(4) / 8))
    scores = create("clex", geometry, factor=2.0).scores(q, k, pos, pos).detach()
    torch.testing.assert_close(scores, expected, rtol=0, atol=2e-5)


def test_as_decoded_as_evaluated(tiny, random_qk):
    clex = with_weights(tiny, factor=3.0)
    q, k, pos = (x[..., :200, :] if x.ndim == 4 else x for x in random_qk(tiny, 200))
    with torch.no_grad():
        full = clex.scores(q, k, pos, pos)
        for n in (1, 64, 65, 128, 129, 200):
            part = clex.scores(q[:, :, n - 1 : n], k[:, :, :n], pos[:, n - 1 : n], pos[:, :n])
            torch.testing.assert_close(full[:, :, n - 1, :n], part[:, :, 0], rtol=0, atol=1e-12)
    assert list(clex.changes(0, 1000)) == [64, 128] and list(clex.changes(64, 127)) == []


def test_the_solution_is_kept_until_the_parameters_change(tiny):
    clex = with_weights(tiny, factor=3.0)
    with torch.no_grad():
        first = clex.table()
        assert clex.table() is first
        clex.down.mul_(2)
        assert not torch.allclose(clex.table(), first)
    assert clex.table().requires_grad


@pytest.mark.parametrize("options", [{"width": 0}, {"activation": "relu"}, {"step": 1e-4}, {"step": 1.5}, {"factor": 0.5}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("clex", geometry, **{"factor": 2.0} | options)


def test_refuses_a_scaled_model(yarned):
    with pytest.raises(ValueError, match="'clex' does not compose"):
        create("clex", yarned, factor=2.0)
