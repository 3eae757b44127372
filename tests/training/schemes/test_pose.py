import pytest
import torch
from drawing import chi_squared, draws
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_posenc.training import PoSE


@given(length=st.integers(1, 30), extra=st.integers(0, 50), chunks=st.integers(2, 5))
@settings(deadline=None, max_examples=60)
def test_there_are_that_many_chunks_of_consecutive_positions(length, extra, chunks):
    for row in draws(PoSE(length + extra, chunks), length, 3):
        steps = row.diff()
        assert row[0] == 0 and (steps >= 1).all() and row[-1] < length + extra
        assert (steps > 1).sum() < chunks


def test_cuts_and_skips_are_drawn_uniformly():
    """Two chunks, L = 4, L' = 7: by the definition 3 places to cut and 4 skips, each pair as often as any other."""
    expected = {}
    for cut in (1, 2, 3):
        for skip in range(4):
            row = tuple(at if at < cut else at + skip for at in range(4))
            expected[row] = expected.get(row, 0) + 1
    assert chi_squared(draws(PoSE(7), 4, 4000), expected) < 27.9  # 9 degrees of freedom, p = 0.001


def test_later_chunks_start_no_earlier_than_the_one_before():
    """Three chunks, L = 3, L' = 5: u1 ~ U{0..2}, u2 ~ U{u1..2}."""
    expected = {(0, 1 + u1, 2 + u2): 1 / (3 - u1) for u1 in range(3) for u2 in range(u1, 3)}
    assert chi_squared(draws(PoSE(5, chunks=3), 3, 6000), expected) < 20.5  # 5 degrees of freedom


def test_it_is_a_collator_by_itself():
    batch = PoSE(40)([{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}])
    assert batch["position_ids"].shape == (1, 4) and batch["attention_mask"].tolist() == [[1, 1, 1, 1]]
    with pytest.raises(ValueError, match="at least 2 chunks"):
        PoSE(40, chunks=1)
    assert torch.equal(PoSE(4)([{"input_ids": [5, 6, 7, 8]}])["position_ids"], torch.arange(4)[None])
