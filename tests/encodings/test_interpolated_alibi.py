import dataclasses

import pytest
import torch
from tiny import tiny_model

import hf_posenc
from hf_posenc.encodings import create


def test_distances_of_the_longer_context_weigh_as_those_of_the_native_one(geometry, random_qk):
    q, k, pos = random_qk(geometry, 12)
    stretched = create("interpolated_alibi", geometry, target_length=64)
    assert (stretched.factor, stretched.context_length) == (4.0, 64)
    torch.testing.assert_close(stretched.scores(q, k, 4 * pos, 4 * pos), create("alibi", geometry).scores(q, k, pos, pos))


def test_slopes_are_those_of_the_model(geometry):
    own = dataclasses.replace(geometry, slopes=(0.5, 0.3, 0.2, 0.1))
    torch.testing.assert_close(create("interpolated_alibi", own, factor=2.0).slopes, torch.tensor([0.25, 0.15, 0.1, 0.05]))


@torch.no_grad()
def test_factor_one_is_the_stock_model_where_that_has_alibi():
    model, ids = tiny_model("mpt"), torch.arange(3, 13)[None]
    stock = model(ids).logits
    hf_posenc.patch(model, "interpolated_alibi", factor=1.0)
    torch.testing.assert_close(model(ids).logits, stock, rtol=2e-4, atol=2e-5)
    assert not torch.allclose(hf_posenc.patch(model, "interpolated_alibi", factor=2.0)(ids).logits, stock, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"factor": 0.5}, {"factor": 2.0, "target_length": 64}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match="factor"):
        create("interpolated_alibi", geometry, **options)
    with pytest.raises(ValueError, match="target_length must be an integer of at least 16"):
        create("interpolated_alibi", geometry, target_length=4)
