"""On an accelerator no stage makes the host wait for it, or computes on the host."""

import pytest
import torch
from tiny import options_for, scores_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from waiting import COPIES, LOOKS, Calls

from hf_posenc import list_encodings
from hf_posenc.encodings import ENCODINGS, create
from hf_posenc.encodings.base import at_hand, widest


def inputs(geometry, queries, device="cpu", positions=None):
    torch.manual_seed(0)
    keys = torch.arange(24, device=device).expand(2, -1) if positions is None else positions
    q = torch.randn(2, geometry.num_heads, queries, geometry.head_dim, device=device, requires_grad=True)
    k = torch.randn(2, geometry.num_kv_heads, 24, geometry.head_dim, device=device)
    return q, k, keys[:, 24 - queries :], keys


def run(encoding, q, k, q_pos, k_pos):
    """Every stage, as the engine calls them; a block of the bias alone."""
    x = torch.zeros(*k_pos.shape, encoding.geometry.hidden_size, device=q.device)
    encoding.embed(x, k_pos)
    scores = scores_of(encoding, q, k, q_pos, k_pos)
    if encoding.has("context_bias"):
        reach = {"reach": 24} if encoding.takes_reach else {}
        encoding.context_bias(q, encoding.cached_key(k, k_pos), q_pos, k_pos, 1.0, **reach)
    return scores


WHOLE = [(name, queries) for name in list_encodings() for queries in (1, 5) if queries == 1 or not ENCODINGS[name].data_dependent]


@pytest.mark.parametrize("name, queries", WHOLE)
def test_no_stage_looks_at_numbers(name, queries, geometry, accelerator):
    with accelerator:
        encoding = create(name, geometry, **options_for(name))
    with Calls() as calls:
        scores = run(encoding, *inputs(geometry, queries, accelerator))
        scores.sum().backward()
    assert scores.is_meta and not calls.count(LOOKS)
    assert not calls.count(COPIES)


def test_reach_spares_a_look(geometry, accelerator):
    with accelerator:
        encoding = create("transformer_xl", geometry)
    q, k, q_pos, k_pos = inputs(geometry, 5, accelerator)
    assert encoding.context_bias(q, k, q_pos, k_pos, 1.0, reach=24).is_meta
    with pytest.raises(RuntimeError, match="meta"):
        encoding.context_bias(q, k, q_pos, k_pos, 1.0)


@pytest.mark.parametrize("name, looks", [("dynamic_ntk", 1), ("longrope", 0)])
def test_frequencies_by_length_are_settled_once_a_pass(name, looks, geometry, nothing_at_hand):
    encoding = create(name, geometry, factor=4.0)
    q, k, q_pos, k_pos = inputs(geometry, 20)
    with Calls() as calls:
        regions = encoding.regions(q_pos, k_pos)
    assert len(regions) > 1
    assert (calls.count(LOOKS), calls.count(COPIES)) == (looks, looks)
    with Calls() as calls:
        for region in regions:
            region.rotate(q, k, q_pos, k_pos)
            region.pairs(q_pos, k_pos)
    assert not calls.count(LOOKS | COPIES)


@pytest.mark.cover("name", "encoding_kind queries", queries=[1, 20])
def test_the_numbers_are_those_of_the_host(name, queries, geometry, request):
    torch.manual_seed(0)
    encoding = create(name, geometry, **options_for(name))
    positions = torch.stack((torch.arange(24), (torch.arange(24) - 9).clamp(min=0)))
    given = inputs(geometry, queries, positions=positions)
    expected = run(encoding, *given)
    request.getfixturevalue("nothing_at_hand")
    torch.testing.assert_close(run(encoding, *given), expected, rtol=1e-5, atol=1e-5)


def test_what_is_at_hand():
    x = torch.ones(1)
    assert at_hand(x) and not at_hand(x.to("meta"))
    assert not torch.compile(lambda x: x + at_hand(x), backend="eager", fullgraph=True)(x) > 1


def test_where_there_is_no_float64():
    assert widest(torch.device("mps")) == torch.float32
    assert widest(torch.device("cpu")) == torch.float64


class Single(TorchDispatchMode):
    """A device without float64."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            assert not (isinstance(x, torch.Tensor) and x.dtype == torch.float64), f"{function} made float64"
        return out


@pytest.mark.cover("name", "encoding_kind queries", queries=[1, 20])
def test_no_float64_where_there_is_none(name, queries, geometry, single, nothing_at_hand):
    with Single():
        encoding = create(name, geometry, **options_for(name))
        run(encoding, *inputs(geometry, queries))
