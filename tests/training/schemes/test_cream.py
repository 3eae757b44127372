import math

import torch
from drawing import chi_squared, draws

from hf_posenc.training import create_scheme


def expected(length, factor, mean, std):
    """Where the middle begins, by the length of the head: the share of each place, from the normal distribution in closed form."""

    def below(x):
        return 0.5 * (1 + math.erf((x - mean) / (std * math.sqrt(2))))

    shares = {}
    for edge in (length // 3, 4 * factor):
        middle = length - 2 * edge
        for double in range(2, 2 * factor + 1):
            low, high = 0 if double == 2 else below(double), 1 if double == 2 * factor else below(double + 1)
            first, last = math.floor(edge + (middle - 1) * double / 2), math.floor(length * double / 2) - edge - 1
            for end in range(first, last + 1):
                place = (edge, end - middle + 1)
                shares[place] = shares.get(place, 0) + (high - low) / (last - first + 1) / 2
    return shares


def places(found, length, factor):
    """(length of the head, beginning of the middle) of each row, where all is as it should be."""
    rows = []
    for row in found.tolist():
        edges = sorted((length // 3, 4 * factor), reverse=True)
        edge = next(edge for edge in edges if (row[edge - 1], row[-edge]) == (edge - 1, length * factor - edge))
        start = row[edge]
        middle = length - 2 * edge
        assert row == [*range(edge), *range(start, start + middle), *range(length * factor - edge, length * factor)]
        rows.append((edge, start))
    return torch.tensor(rows)


def test_heads_and_tails_have_two_lengths_and_the_middle_is_gaussian():
    """The formula agrees with what the authors' code drew: at 96 tokens and a factor of 4, with their mean of 9, 120,000 of its draws are
    within chi-squared 254 (245 places) and 292 (275) of it.
    """
    for length, factor, more in ((27, 2, {}), (27, 2, {"mean": 9.0}), (40, 3, {"std": 1.0})):
        shares = expected(length, factor, more.get("mean", 1 + factor), more.get("std", 3.0))
        found = places(draws(create_scheme("cream", target_length=length * factor, **more), length, 3000), length, factor)
        degrees = len(shares) - 1
        assert chi_squared(found, shares) < degrees + 3.1 * math.sqrt(2 * degrees) + 5  # p = 0.001


def test_texts_of_any_length_are_placed_in_order_up_to_the_end():
    for length in (1, 2, 3, 7, 11, 39, 40):
        for row in draws(create_scheme("cream", target_length=40), length, 50):
            assert row[0] >= 0 and (row.diff() >= 1).all() and row[-1] < 40
            assert length < 3 or (row[0] == 0 and row[-1] == 39)
