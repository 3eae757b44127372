"""Every option of every encoding says what it cannot be, and works with what it lets pass."""

import pytest
import torch
from tiny import scores_of

from hf_posenc.encodings import ENCODINGS, create, options_of

OPTIONS = [(name, option) for name in ENCODINGS for option in options_of(ENCODINGS[name])]
VALUES = [float("nan"), float("inf"), -float("inf"), -1, 0, 1, -1.0, 0.5, 1e30, 10**30, 10**400, "abc", "2", True, [1.0], torch.tensor(2.0)]
STRETCH = ("factor", "target_length", "group")


def build(geometry, name, option, value):
    stretched = "factor" in options_of(ENCODINGS[name]) and option not in STRETCH
    return create(name, geometry, **({"factor": 4.0} if stretched else {}), **{option: value})


@pytest.mark.parametrize("name, option", OPTIONS)
def test_a_value_is_refused_by_name_or_works(geometry, random_qk, name, option):
    for value in VALUES:
        try:
            encoding = build(geometry, name, option, value)
        except ValueError as error:
            assert option in str(error), f"{option} = {value!r}: {error}"
            assert "\n" not in str(error)
        else:
            assert value is True or not isinstance(value, float) or abs(value) < 1e30, "neither infinite nor beyond all sense"
            check_that_it_works(encoding, random_qk(geometry, 12), f"{option} = {value!r}")


def check_that_it_works(encoding, inputs, what):
    length = 12 if encoding.any_length else min(12, encoding.context_length)
    q, k, pos = (x[..., :length, :] if x.ndim == 4 else x[..., :length] for x in inputs)
    for dtype in (torch.float32, torch.bfloat16):
        seen = scores_of(encoding, q.to(dtype), k.to(dtype), pos, pos).tril()
        assert not seen.isnan().any() and not seen.isposinf().any() and seen.diagonal(dim1=2, dim2=3).isfinite().all(), what
        assert encoding.embed(torch.zeros(2, length, 32, dtype=dtype), pos).isfinite().all(), what


@pytest.mark.parametrize("name, option", OPTIONS)
def test_nonsense_is_refused(geometry, name, option):
    for value in VALUES:
        if isinstance(value, str | list) or value != value or abs(value) > 2:
            with pytest.raises(ValueError, match=option):
                build(geometry, name, option, value)


@pytest.mark.parametrize("name", [name for name in ENCODINGS if "factor" in options_of(ENCODINGS[name])])
def test_a_factor_has_an_end(geometry, name):
    create(name, geometry, factor=10_000.0)
    for value in (10_001, 1e30):
        with pytest.raises(ValueError, match="factor must be a finite number at least 1 and at most 10000, got"):
            create(name, geometry, factor=value)
    with pytest.raises(ValueError, match="target_length must be an integer of at most 160000, got 160001"):
        create(name, geometry, target_length=160_001)
