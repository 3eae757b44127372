"""Every encoding on every path of the engine, in every dtype, with and without gradients, against the dense definition in float64."""

import inspect

import pytest
import torch
from test_attention import IN_ATTENTION, LEARNED, Site, posenc_attention, reference, setting
from torch.testing import assert_close

import hf_posenc
from hf_posenc.attention import blocks, columns, dense, distance, entry, flex, regional, stock
from hf_posenc.encodings import Geometry, PositionalEncoding
from hf_posenc.encodings.naming import BY_BLOCK, SCORING

LENGTH = 24
TOLERANCE = {
    torch.float64: {"atol": 1e-9, "rtol": 1e-9},
    torch.float32: {"atol": 2e-5, "rtol": 2e-4},
    torch.bfloat16: {"atol": 4e-2, "rtol": 4e-2},
    torch.float16: {"atol": 6e-3, "rtol": 6e-3},
}
MODULES = {"regions": regional, "blocks": blocks, "table": distance, "dense": dense, "flex": flex, "columns": columns}
PATHS = {path: (module, "attention", module.attention) for path, module in MODULES.items()} | {"fused": (blocks, "fused", blocks.fused)}


class Slanted(PositionalEncoding):
    """A user's own bias, one that is no function of the distance."""

    name = "slanted"

    def bias(self, h, q_pos, k_pos):
        q, k = (x if x.dtype == torch.float64 else x.float() for x in (q_pos, k_pos))
        return -(q - k).clamp(min=0) * (1 + (h + 1) / (q + 3))


class Leaning(Slanted):
    """The same as a learned number for each head."""

    name = "leaning"

    def __init__(self, geometry):
        super().__init__(geometry)
        self.weight = torch.nn.Parameter(torch.linspace(0.5, 2.0, geometry.num_heads))

    def bias(self, h, q_pos, k_pos):
        return super().bias(h, q_pos, k_pos) * self.weight.to(q_pos.dtype if q_pos.dtype == torch.float64 else torch.float32)[h]


class Sloping(PositionalEncoding):
    """A user's own bias of the distance, in a dtype of its own, whatever that of the model."""

    relative, dtype = True, torch.float32

    def bias(self, h, q_pos, k_pos):
        return ((k_pos - q_pos).clamp(max=0) * 0.25**h).to(self.dtype)


IN_A_DTYPE = {f"sloping_{dtype}": type("Sloping", (Sloping,), {"dtype": dtype}) for dtype in TOLERANCE}
OWN = {"slanted": Slanted, "leaning": Leaning, **IN_A_DTYPE}


def site_of(name):
    site, q, k, v = setting(name if name not in OWN else "alibi", queries=LENGTH, keys=LENGTH, native=12)
    if name in OWN:
        site = Site(OWN[name](Geometry(64, 4, 2, 16, max_positions=12)), 2)
    return site, q, k, v


def expected_paths(name, kind, grad):
    """Which functions of the engine must have run, from what the encoding declares and from the kind of call."""
    cls = OWN.get(name) or hf_posenc.encodings.ENCODINGS[name]
    stages = {stage for stage in SCORING if cls.has(stage)}
    if kind == "eager":
        return {"dense"}
    if not stages:
        return set()  # a rotation alone goes to the stock kernel
    content = set(BY_BLOCK) & stages
    fused = not grad and kind == "plain" and not content | ({"regions"} & stages) and not cls.has("meet")
    by_block = {"blocks"} | ({"fused"} if fused else set())
    if content:
        return by_block
    if "regions" in stages:
        return {"regions"} if kind == "plain" and not (grad and name in LEARNED) else {"blocks"}
    return {"table"} if cls.relative and kind == "plain" else by_block


CASES = {"name": [*IN_ATTENTION, *OWN], "kind": ["plain", "holes", "eager"], "grad": [False, True], "dtype": list(TOLERANCE)}


@pytest.fixture
def taken(monkeypatch):
    """The paths that a call goes through."""
    seen = set()
    for path, (module, name, function) in PATHS.items():

        def spy(*args, path=path, function=function, **kwargs):
            seen.add(path)
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, spy)
    return seen


@pytest.mark.cover("name kind dtype", "encoding_kind kind grad dtype", **CASES)
def test_every_path_in_every_dtype(name, kind, grad, dtype, taken):
    site, q, k, v = site_of(name)
    site.encoding.to(dtype)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    pos = torch.arange(LENGTH)[None].expand(2, -1)
    seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    if kind == "holes":
        seen = (seen & (torch.rand(2, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.7)) | torch.eye(LENGTH, dtype=bool)
    twins = [x.double().requires_grad_(grad) for x in (q, k, v)]
    wanted = reference(site.encoding, *twins, pos, pos, seen)
    inputs = [x.clone().requires_grad_(grad) for x in (q, k, v)]
    with torch.set_grad_enabled(grad):
        output, _ = posenc_attention("eager" if kind == "eager" else "sdpa", site, *inputs, seen, position_ids=pos[:1])
    assert taken == expected_paths(name, kind, grad)
    assert output.dtype == dtype
    assert_close(output.double(), wanted, **TOLERANCE[dtype])
    if grad:
        learned = [p for p in site.encoding.parameters() if p.requires_grad]
        sums = output.double().square().sum(), wanted.square().sum()
        ours = torch.autograd.grad(sums[0], inputs + learned, allow_unused=True, materialize_grads=True)
        theirs = torch.autograd.grad(sums[1], twins + learned, allow_unused=True, materialize_grads=True)
        for one, other in zip(ours, theirs, strict=True):
            scale = max(1.0, float(other.abs().max()))
            assert_close(one.double() / scale, other.double() / scale, **{k: 4 * x for k, x in TOLERANCE[dtype].items()})


def test_the_paths_are_those_that_the_engine_has():
    """A path that is added is added here too."""
    modules = {value for value in vars(entry).values() if inspect.ismodule(value) and value.__name__.startswith("hf_posenc.attention.")}
    assert modules == {*MODULES.values(), stock}
