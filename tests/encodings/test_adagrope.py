import dataclasses

import numpy as np
import pytest
import torch

from hf_posenc.encodings import create

PLAIN = 10_000.0 ** (-2 * np.arange(4) / 8)


def algorithm_1(length, positions, ratio):
    """The paper's, line by line, but from near to far: the relative position of each distance."""
    if length <= positions:
        return list(range(length))
    reuse, longest, used, covered, found = 1, positions, 0, 0, []
    while longest < length:
        if reuse & (reuse - 1) == 0:
            kept = int(ratio * positions / reuse)
            for p in range(used, used + kept):
                found += [p] * reuse
            used, covered = used + kept, covered + kept * reuse
        reuse += 1
        longest = (positions - used) * reuse + covered
    most = positions - (longest - length) - used
    for p in range(used, positions - most):
        found += [p] * (reuse - 1)
    for p in range(positions - most, positions):
        found += [p] * reuse
    return found


def distance(i, j, found):
    """As in the paper where the groups of i and of j begin together; else what lies between the groups of the band."""
    uses = found.count(found[i - j])
    begins = next(d for d, p in enumerate(found) if found.count(p) == uses)
    return found[begins] + (i - begins) // uses - j // uses


def of_bands(encoding):
    ends = [*[back for back, _ in encoding.bands.values()][1:], encoding.length]
    bands = zip(encoding.bands.items(), ends, strict=True)
    return [p + (d - back) // uses for (uses, (back, p)), end in bands for d in range(back, end)]


@pytest.mark.parametrize("native", [3, 16, 33])
@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5])
def test_the_bands_are_those_of_the_paper(geometry, native, ratio):
    geometry = dataclasses.replace(geometry, max_positions=native)
    for length in range(native, 8 * native, 5):
        encoding = create("adagrope", geometry, target_length=length, ratio=ratio)
        assert of_bands(encoding) == algorithm_1(length, native, ratio)


@pytest.mark.parametrize("length, uses", [(16, [1]), (28, [1, 2]), (29, [1, 2, 3]), (38, [1, 2, 3]), (48, [1, 2, 4]), (49, [1, 2, 4, 5])])
def test_the_example_of_the_paper(geometry, length, uses):
    """Figure 1 and equations 5, 10 and 13: P = 16 and r = 0.25 reach 28, 38 and 48 tokens with at most 2, 3 and 4 uses."""
    assert [*create("adagrope", geometry, target_length=length).bands] == uses


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("length, positions, ratio", [(24, 16, 0.25), (24, 8, 0.25), (40, 9, 0.4), (30, 4, 0.3)])
def test_scores(geometry, random_qk, rotary_scores, interleaved, length, positions, ratio):
    geometry = dataclasses.replace(geometry, interleaved=interleaved)
    found = algorithm_1(length, positions, ratio)
    q, k, pos = random_qk(geometry, 24)
    expected = rotary_scores(q, k, lambda i, j: distance(i, j, found) * PLAIN if i >= j else 0 * PLAIN, interleaved)
    scores = create("adagrope", geometry, target_length=length, positions=positions, ratio=ratio).scores(q, k, pos, pos)
    torch.testing.assert_close(scores.tril(), expected.tril(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("length, positions", [(60, 16), (100, 16), (64, 8)])
def test_keys_look_at_most_one_token_farther_than_in_the_paper(length, positions):
    found = algorithm_1(length, positions, 0.25)
    rows = [[distance(i, j, found) - found[i - j] for j in range(i + 1)] for i in range(0, length, 7)]
    assert {x for row in rows for x in row} == {0, 1}
    assert max(distance(length - 1, j, found) for j in range(length)) == positions - 1


def test_stands_on_the_scaling_of_the_model(yarned, random_qk, rotary_scores):
    q, k, pos = random_qk(yarned, 20)
    found = algorithm_1(64, 16, 0.25)
    expected = 1.25**2 * rotary_scores(q, k, lambda i, j: distance(i, j, found) * np.array(yarned.frequencies) if i >= j else np.zeros(4))
    torch.testing.assert_close(create("adagrope", yarned).scores(q, k, pos, pos).tril(), expected.tril(), rtol=0, atol=1e-5)


def test_positions_past_the_target(geometry):
    encoding = create("adagrope", geometry)
    encoding.check_positions(63)
    with pytest.raises(ValueError, match=r"position 64 lies past the 64 tokens.*Use target_length = 65, or"):
        encoding.check_positions(64)


@pytest.mark.parametrize("options", [{"positions": 0}, {"positions": 17}, {"ratio": 0.0}, {"ratio": 0.6}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        create("adagrope", geometry, **options)
