import pytest
from torch.testing import assert_close

from hf_posenc.encodings import create


def test_positions_begin_again_and_a_query_sees_one_period(geometry, random_qk, rotary_scores):
    """As the author's code counts: it gave the same attention but for rounding, on the same weights."""
    q, k, pos = random_qk(geometry, 17)
    scores = create("periodic_rope", geometry, window=5).scores(q, k, pos, pos)
    frequencies = [10_000.0 ** (-n / 4) for n in range(4)]
    expected = rotary_scores(q, k, lambda i, j: [(i % 5 - j % 5) * f for f in frequencies])
    distance = (pos[:, :, None] - pos[:, None, :])[:, None]
    seen = (distance >= 0) & (distance < 5)
    assert_close(scores.where(seen, 0), expected.where(seen, 0), rtol=1e-6, atol=1e-6)
    assert bool((scores.isneginf() | (distance < 0))[~seen.expand_as(scores)].all())


def test_within_the_first_period_it_is_rope(geometry, random_qk):
    q, k, pos = random_qk(geometry, 7)
    seen = (pos[:, None, :] <= pos[:, :, None])[:, None]
    periodic, rope = (
        create(name, geometry, **more).scores(q, k, pos, pos) for name, more in (("periodic_rope", {"window": 7}), ("rope", {}))
    )
    assert_close(periodic.where(seen, 0), rope.where(seen, 0))


@pytest.mark.parametrize("window", [0, -1, 2.0])
def test_bad_windows(geometry, window):
    with pytest.raises(ValueError, match="window must be an integer of at least 1"):
        create("periodic_rope", geometry, window=window)
