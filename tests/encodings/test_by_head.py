"""Encodings by head: on its heads each part does what it does alone, in a model that has no others."""

import dataclasses
import math

import pytest
import torch
from torch.testing import assert_close

from hf_posenc.encodings import Geometry, create
from hf_posenc.encodings.bias.alibi import alibi_slopes
from hf_posenc.encodings.contract import check_stages

GEOMETRY = Geometry(64, 8, 4, head_dim=8, max_positions=16)


def states(length=20):
    torch.manual_seed(0)
    q, k = (torch.randn(2, heads, length, 8, dtype=torch.float64) for heads in (8, 4))
    return q, k, torch.arange(length).expand(2, -1)


def alone(part, heads, q, k, pos):
    """The scores of one part on its heads, every head with a key of its own."""
    options = {option: value for option, value in part.items() if option not in ("name", "heads")}
    geometry = dataclasses.replace(GEOMETRY, num_heads=len(heads), num_kv_heads=len(heads))
    return create(part["name"], geometry, **options).scores(q[:, heads], k.repeat_interleave(2, 1)[:, heads], pos, pos)


CASES = {
    "biases that cross groups": [({"name": "alibi", "heads": [0, 3, 5]}, [0, 3, 5]), ({"name": "sandwich"}, [1, 2, 4, 6, 7])],
    "half without": [({"name": "rope", "heads": ":4"}, [0, 1, 2, 3]), ({"name": "nope"}, [4, 5, 6, 7])],
    "unordered": [({"name": "alibi", "heads": [2, 3, 4, 5]}, [2, 3, 4, 5]), ({"name": "yarn", "factor": 2.0}, [0, 1, 6, 7])],
    "one rotation in one group": [({"name": "rope", "heads": "::2"}, [0, 2, 4, 6]), ({"name": "rope"}, [1, 3, 5, 7])],
    "three": [
        ({"name": "rope", "heads": "6:", "temperature": "log_n"}, [6, 7]),
        ({"name": "nope", "heads": 0, "temperature": {"name": "yarn", "factor": 3.0}}, [0]),
        ({"name": "fire", "shared": True}, [1, 2, 3, 4, 5]),
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_each_part_is_itself_on_its_heads(case):
    q, k, pos = states()
    torch.manual_seed(3)
    encoding = create("by_head", GEOMETRY, parts=[part for part, _ in CASES[case]]).double()
    scores = encoding.scores(q, k, pos, pos)
    torch.manual_seed(3)
    for part, heads in CASES[case]:
        expected = (
            alone(part, heads, q, k, pos)
            if part["name"] != "fire"
            else encoding.parts[-1].bias_matrix(pos, pos) + (q[:, heads] @ k.repeat_interleave(2, 1)[:, heads].mT / 8**0.5)
        )
        assert_close(scores[:, heads], expected, rtol=1e-6, atol=1e-6)


def test_content_biases_see_their_heads_alone():
    q, k, pos = states()
    parts = [{"name": "shaw", "heads": [1, 2, 3]}, {"name": "transformer_xl"}]
    encoding = create("by_head", GEOMETRY, parts=parts).double()
    keys = k.repeat_interleave(2, 1)
    for part, heads in zip(encoding.parts, ([1, 2, 3], [0, 4, 5, 6, 7]), strict=True):
        expected = part.context_bias(q[:, heads], keys[:, heads], pos, pos, 8**-0.5)
        assert_close(encoding.context_bias(q, k, pos, pos, 8**-0.5, reach=20)[:, heads], expected)


def test_a_temperature_of_all_parts_reaches_those_that_turn():
    q, k, pos = states()
    parts = [{"name": "rope", "heads": ":4"}, {"name": "alibi"}]
    warm, plain = (create("by_head", GEOMETRY, parts=parts, **more) for more in ({"temperature": {"name": "yarn", "factor": 8.0}}, {}))
    bias = plain.bias_matrix(pos, pos)
    factor = (0.1 * math.log(8) + 1) ** 2
    assert_close(warm.scores(q, k, pos, pos), (plain.scores(q, k, pos, pos) - bias) * factor + bias, rtol=1e-6, atol=1e-6)


def test_a_window_around_all_parts_hides_keys_from_what_mixes_them():
    q, k, pos = states()
    parts = [{"name": "dape", "heads": ":4"}, {"name": "nope"}]
    encoding = create("by_head", GEOMETRY, parts=parts, sliding_window=5).double()
    alone = create("dape", dataclasses.replace(GEOMETRY, num_heads=4, num_kv_heads=2), sliding_window=5).double()
    for parameter in encoding.parameters():
        parameter.data.normal_()
    alone.load_state_dict(encoding.parts[0].state_dict())
    assert_close(encoding.scores(q, k, pos, pos)[:, :4], alone.scores(q[:, :4], k[:, :2], pos, pos))


def test_one_encoding_on_some_heads_leaves_the_others_without():
    q, k, pos = states()
    scores, plain = (create(name, GEOMETRY, **more).scores(q, k, pos, pos) for name, more in (("alibi", {"heads": "4:"}), ("nope", {})))
    assert torch.equal(scores[:, :4], plain[:, :4])
    distance = (pos[:, None, :] - pos[:, :, None]).abs()[:, None]
    assert_close(scores[:, 4:], plain[:, 4:] - alibi_slopes(4)[:, None, None] * distance, rtol=1e-6, atol=1e-6)


def test_slopes_of_the_model_go_with_their_heads():
    own = dataclasses.replace(GEOMETRY, slopes=tuple(float(2**-h) for h in range(8)))
    heads, numbers = create("alibi", own, heads=[1, 4]).columns(torch.arange(5)[None])
    assert heads.tolist() == [0, 0.5, 0, 0, 0.0625, 0, 0, 0] and torch.equal(numbers, torch.arange(5)[None])


def test_only_the_stages_of_the_parts_are_there():
    for parts, stages, caches, relative in (
        ([{"name": "alibi", "heads": 0}, {"name": "nope"}], {"bias", "columns"}, "raw", True),
        ([{"name": "alibi", "heads": 0}, {"name": "fire"}], {"bias"}, "raw", False),
        ([{"name": "rope", "heads": ":2"}, {"name": "nope"}], {"rotate", "cached_key"}, "transformed", True),
        ([{"name": "nope", "heads": 0, "temperature": "log_n"}, {"name": "shaw"}], {"rotate", "context_bias"}, "raw", True),
    ):
        encoding = create("by_head", GEOMETRY, parts=parts)
        check_stages(encoding)
        asked = ("embed", "rotate", "bias", "context_bias", "regions", "cached_key", "columns")
        assert ({s for s in asked if encoding.has(s)}, encoding.caches, encoding.relative) == (stages, caches, relative)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([{"name": "rope", "heads": "::2"}, {"name": "nope"}], r"query heads 0 to 1 share one key, which 'rope' and 'nope' .* groups of 2"),
        ([{"name": "rope", "heads": ":3"}, {"name": "linear", "factor": 2.0}], "query heads 2 to 3 share one key"),
        ([{"name": "rerope", "heads": ":4"}, {"name": "nope"}], "'rerope' treats all heads alike in its stage 'regions'"),
        ([{"name": "learned", "heads": ":4"}, {"name": "nope"}], "'learned' treats all heads alike in its stage 'embed'"),
        ([{"name": "alibi", "heads": ":4"}, {"name": "nope", "heads": "3:"}], "heads 3 are in several parts"),
        ([{"name": "alibi", "heads": ":4"}], "there are 0 such parts, and heads 4, 5, 6, 7 of 8 are left"),
        ([{"name": "alibi"}, {"name": "nope"}], "there are 2 such parts"),
        ([{"name": "alibi", "heads": ":"}, {"name": "nope"}], "heads none of 8 are left"),
        ([{"name": "alibi", "heads": 8}, {"name": "nope"}], "heads has 8, but there are 0 to 7"),
        ([{"name": "alibi", "heads": "8:"}, {"name": "nope"}], "selects nothing"),
        ([{"name": "alibi", "heads": "first"}, {"name": "nope"}], "heads is an index, a list"),
        ([{"name": "log_n", "heads": 0}, {"name": "nope"}], "'log_n' is a temperature"),
        ("alibi", "parts= is a list of"),
    ],
)
def test_mistakes(parts, message):
    with pytest.raises(ValueError, match=message):
        create("by_head", GEOMETRY, parts=parts)
