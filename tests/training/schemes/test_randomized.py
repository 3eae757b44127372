from itertools import combinations

from drawing import chi_squared, draws

from hf_posenc.training import RandomizedPositions


def test_they_are_a_sorted_subset_and_every_subset_is_as_likely():
    expected = dict.fromkeys(combinations(range(6), 3), 1)
    assert chi_squared(draws(RandomizedPositions(6), 3, 4000), expected) < 43.8  # 19 degrees of freedom, p = 0.001
