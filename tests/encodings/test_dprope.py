import pytest
import torch

from hf_posenc.encodings import Geometry, create

AUTHORS = {  # (theta, L, head, s): what 1180301012/DPRoPE divides each frequency by
    (10_000.0, 64, 16, 4): [4, 4, 1, 4, 4, 4, 4, 4],
    (10_000.0, 256, 32, 4): [1, 1, 4, 1, 1, 1, 1, 4, 4, 4, 4, 4, 4, 4, 4, 4],
    (10_000.0, 512, 32, 2): [1, 2, 1, 1, 2, 2, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2],
    (500_000.0, 256, 64, 8): [1, 8, *[1] * 6, *[8] * 21, 1, 1, 1],
}


@pytest.mark.parametrize("case", AUTHORS, ids=str)
def test_choices_of_the_authors_code(case):
    theta, native, width, factor = case
    geometry = Geometry(hidden_size=4 * width, num_heads=4, head_dim=width, theta=theta, max_positions=native)
    expected = create("rope", geometry).inv_freq / torch.tensor(AUTHORS[case])
    assert torch.equal(create("dprope", geometry, factor=float(factor)).inv_freq, expected)


def test_by_target_length(tiny):
    one, other = create("dprope", tiny, factor=4.0), create("dprope", tiny, target_length=256)
    assert torch.equal(one.inv_freq, other.inv_freq)
    assert other.rope_parameters() is None


@pytest.mark.parametrize("options", [{"intervals": 0}, {"intervals": 1 << 17}, {"intervals": 36.5}, {"factor": 0.5}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("dprope", geometry, **{"factor": 2.0} | options)


def test_refuses_a_scaled_model(yarned):
    with pytest.raises(ValueError, match="'dprope' does not compose"):
        create("dprope", yarned, factor=2.0)
