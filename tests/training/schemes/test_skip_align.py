import pytest
from drawing import chi_squared, draws

from hf_posenc.training import create_scheme
from hf_posenc.training.packing import IGNORED

TURNS = [IGNORED, IGNORED, 5, 6, IGNORED, 8]


def test_skips_lie_between_turns_alone_and_grow():
    """Two tokens of instruction, two of response, one and one; skips that grow from U{0 ... 3}, where 9 positions are for 6 tokens."""
    expected = {}
    for u1 in range(4):
        for u2 in range(u1, 4):
            for u3 in range(u2, 4):
                expected[(0, 1, 2 + u1, 3 + u1, 4 + u2, 5 + u3)] = 1 / 4 / (4 - u1) / (4 - u2)
    assert chi_squared(draws(create_scheme("skip_align", target_length=9), 6, 4000, TURNS), expected) < 43.8  # 19 degrees of freedom


def test_the_first_token_of_a_packed_document_is_no_turn():
    scheme = create_scheme("skip_align", target_length=50)
    assert (draws(scheme, 6, 200, [IGNORED] * 3 + [4, 5, 6])[:, :3] == draws(scheme, 6, 1, [IGNORED] * 6)[:, :3]).all()
    for nothing in (None, [1, 2, 3, 4, 5, 6], [IGNORED, 2, 3, 4, 5, 6]):
        with pytest.raises(ValueError, match="looks for turns in the labels"):
            draws(scheme, 6, 1, nothing)
