"""What every encoding keeps. Only the registry is asked which encodings there are."""

import copy
import dataclasses

import pytest
import torch
from texts import text_of
from tiny import options_for, scores_of

from hf_posenc.encodings import ENCODINGS, Geometry, PositionalEncoding, create, options_of, register

ALL = list(ENCODINGS)


def build(name, geometry):
    return create(name, geometry, **options_for(name))


def far(encoding, tokens, length):
    """So many tokens on, or about as many as it is defined for behind a text of `length`: a number that no group of positions divides."""
    return tokens if encoding.any_length else min(tokens, encoding.context_length - length - 1)


def precise_buffers(encoding):
    return {name: buffer.clone() for name, buffer in encoding.named_buffers()}


@pytest.mark.parametrize("name", ALL)
def test_relative_means_that_only_the_distance_counts(geometry, random_qk, name):
    torch.manual_seed(0)
    encoding = build(name, geometry)
    for parameter in encoding.parameters():  # some start at zero
        parameter.data.add_(torch.rand_like(parameter) / 10)
    q, k, pos = random_qk(geometry, 40)
    scores, moved = (scores_of(encoding, q, k, p, p) for p in (pos, pos + far(encoding, 1009, 40)))  # prime: no period hides
    moves = not torch.allclose(scores.tril(), moved.tril(), rtol=0, atol=1e-8)
    x = torch.ones(2, 4, geometry.hidden_size)
    moves |= any(not torch.equal(stage(x, pos[:, :4]), stage(x, pos[:, 4:8])) for stage in (encoding.embed, encoding.infuse))
    if encoding.has("embed_text"):
        texts = (text_of(encoding, pos[:, 5:9], table=torch.ones(9, geometry.hidden_size), pos=p) for p in (pos[:, :4], pos[:, 4:8]))
        moves |= not torch.equal(*(encoding.eval().embed_text(x, text) for text in texts))
    assert encoding.relative is not moves


@pytest.mark.parametrize("name", ALL)
def test_regions_are_disjoint_and_a_query_sees_itself(geometry, name):
    q_pos, k_pos = torch.randint(0, 100, (3, 50)), torch.randint(0, 100, (3, 60))
    q_pos[:, :10] = k_pos[:, :10]
    regions = build(name, geometry).regions(q_pos, k_pos)
    owners = sum(region.pairs(q_pos, k_pos).expand(3, 1, 50, 60).int() for region in regions)
    assert owners.max() == 1
    assert owners[q_pos[:, None, :, None] == k_pos[:, None, None, :]].all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_touch_buffers(geometry, name, dtype):
    encoding = build(name, geometry)
    before = precise_buffers(encoding)
    after = precise_buffers(encoding.to(dtype))
    assert all(after[n].dtype in (torch.float32, torch.int64) and torch.equal(after[n], before[n]) for n in before)
    assert all(p.dtype == dtype for p in encoding.parameters())
    q, k, pos = torch.randn(1, 4, 5, 8, dtype=dtype), torch.randn(1, 2, 5, 8, dtype=dtype), torch.arange(5)[None]
    assert scores_of(encoding, q, k, pos, pos).dtype == dtype
    assert encoding.embed(torch.randn(1, 5, 32, dtype=dtype), pos).dtype == dtype


@pytest.mark.parametrize("name", ALL)
def test_scores_in_half_precision_are_those_in_float64(geometry, random_qk, name):
    encoding = build(name, geometry)
    q, k, pos = random_qk(geometry, 12)
    pos = pos + far(encoding, 3000, 12)
    exact = scores_of(encoding, q, k, pos, pos)
    half = scores_of(encoding, q.bfloat16(), k.bfloat16(), pos, pos)
    torch.testing.assert_close(half.tril().double(), exact.tril(), rtol=0.05, atol=0.15)


@pytest.mark.parametrize("name", ALL)
def test_buffers_survive_the_meta_device(geometry, name):
    expected = precise_buffers(build(name, geometry))
    with torch.device("meta"):
        encoding = build(name, geometry)
    after = precise_buffers(encoding.to_empty(device="cpu"))
    assert after.keys() == expected.keys()
    assert all(torch.equal(after[n], expected[n]) for n in expected)


@pytest.mark.parametrize("name", ALL)
def test_buffers_stay_out_of_the_state(geometry, name):
    encoding = build(name, geometry)
    assert set(encoding.state_dict()) == {n for n, _ in encoding.named_parameters()}


@pytest.mark.parametrize("name", ALL)
def test_a_copy_is_independent(geometry, random_qk, name):
    encoding = build(name, geometry)
    q, k, pos = random_qk(geometry, 10)
    before = scores_of(encoding, q, k, pos, pos)
    twin = copy.deepcopy(encoding)
    assert torch.equal(scores_of(twin, q, k, pos, pos), before)
    for tensor in (*twin.parameters(), *twin.buffers()):
        tensor.data.add_(1)
    assert torch.equal(scores_of(encoding, q, k, pos, pos), before)
    assert twin.options == encoding.options


@pytest.mark.parametrize("name", ALL)
def test_stock_transformers_does_what_rope_parameters_says(geometry, llama_rotary, name):
    encoding = build(name, geometry)
    if encoding.rope_parameters() is None:
        return
    stock = llama_rotary(geometry, encoding.rope_parameters())
    assert torch.equal(stock.inv_freq, encoding.inv_freq)
    assert stock.attention_scaling == encoding.attention_factor


@pytest.mark.parametrize("name", ALL)
def test_is_described(name):
    cls = ENCODINGS[name]
    assert cls.name == name and cls.__doc__
    assert cls.caches in ("transformed", "raw")
    for option in options_of(cls):
        assert f"\n        {option}:" in cls.__doc__, f"{name} does not say what {option} is"
    with pytest.raises(ValueError, match=f"encoding '{name}' has no option 'colour'"):
        create(name, Geometry(hidden_size=32, num_heads=4), colour="red")


def test_unknown_names_and_options(geometry):
    with pytest.raises(ValueError, match=r"unknown encoding 'yran'. Did you mean 'yarn'.*Known: .*alibi"):
        create("yran", geometry)
    with pytest.raises(ValueError, match=r"'yarn' has no option 'fctor'. Did you mean 'factor'.*It takes factor, target_length"):
        create("yarn", geometry, fctor=2.0)


def test_geometry_fills_itself():
    geometry = Geometry(hidden_size=48, num_heads=4, num_layers=3)
    assert (geometry.num_kv_heads, geometry.head_dim, geometry.rotary_dim) == (4, 12, 12)
    assert geometry.layer_types == ("full_attention",) * 3
    assert Geometry(hidden_size=48, num_heads=4, head_dim=10).rotary_dim == 10
    with pytest.raises(dataclasses.FrozenInstanceError):
        geometry.num_heads = 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden_size": 0},
        {"hidden_size": 32.0},
        {"num_heads": 0},
        {"num_kv_heads": -1},
        {"head_dim": -8},
        {"rotary_dim": -2},
        {"rotary_dim": 16},
        {"max_positions": 0},
        {"num_layers": 0},
    ],
)
def test_geometry_refuses(wrong):
    with pytest.raises(ValueError, match=f"Geometry.{next(iter(wrong))} must be"):
        Geometry(**{"hidden_size": 32, "num_heads": 4} | wrong)


def test_geometry_refuses_uneven_groups():
    with pytest.raises(ValueError, match="4 query heads cannot share 3 key-value heads evenly"):
        Geometry(hidden_size=32, num_heads=4, num_kv_heads=3)


def test_users_register_their_own(geometry, random_qk):
    @register("half_distance")
    class HalfDistance(PositionalEncoding):
        relative = True

        def __init__(self, geometry, *, slope: float = 0.5):
            super().__init__(geometry)
            self.slope = slope

        def bias(self, h, q_pos, k_pos):
            return -self.slope * (q_pos - k_pos)

    try:
        with pytest.raises(ValueError, match="'half_distance' is registered twice"):
            register("half_distance")(type("Other", (HalfDistance,), {}))
        q, k, pos = random_qk(geometry, 6)
        encoding = create("half_distance", geometry, slope=2.0)
        difference = scores_of(encoding, q, k, pos, pos) - create("nope", geometry).scores(q, k, pos, pos)
        torch.testing.assert_close(difference[1, 3], -2.0 * (torch.arange(6.0)[:, None] - torch.arange(6.0)).double())
        assert encoding.has("bias") and not encoding.has("rotate")
        assert repr(encoding) == "HalfDistance(slope=2.0)"
    finally:
        del ENCODINGS._entries["half_distance"]


@pytest.mark.parametrize("name", ["YaRN", "my-encoding", "two words", ""])
def test_names_are_snake_case(name):
    with pytest.raises(ValueError, match="snake_case"):
        register(name)
