"""An encoding of the user that would be wrong, or none at all, is refused by name before a model is touched."""

import pytest
import torch
from tiny import needed_by, tiny_model
from torch import nn

import hf_posenc
from hf_posenc.encodings import ENCODINGS, Geometry, Region, create
from hf_posenc.encodings.contract import check_stages
from hf_posenc.encodings.naming import check_class


def bias_of(function):
    return {"bias": lambda self, h, q_pos, k_pos: function(h, q_pos, k_pos)}


def rotate_of(function):
    return {"rotate": lambda self, q, k, q_pos, k_pos: function(q, k, q_pos, k_pos)}


def embed_of(function):
    return {"embed": lambda self, x, pos: function(x, pos)}


def context_of(function):
    return {"context_bias": lambda self, q, k, q_pos, k_pos, scaling: function(q, k, q_pos, k_pos)}


def regions_of(rotate, **more):
    return {"regions": lambda self, q_pos, k_pos: [Region(rotate, **more)]}


def slope(h, q_pos, k_pos):
    return -(q_pos - k_pos).abs().float()


def turned(q, k, q_pos, k_pos):
    return (x * (1 + p[:, None, :, None]).to(x.dtype) for x, p in ((q, q_pos), (k, k_pos)))


def define(methods, relative=False, bases=(hf_posenc.PositionalEncoding,)):
    return type("Mine", bases, {"relative": relative, "__module__": __name__, **methods})


@pytest.fixture
def patch_with():
    """Registers a class of these methods and patches a tiny model with it; the model is as it was if that fails."""
    model = tiny_model("llama")
    names, ids = [*model.state_dict()], torch.arange(1, 9)[None]
    before, kinds = model(ids).logits, [type(m) for m in model.modules()]

    def patch(methods, **more):
        hf_posenc.register("mine")(define(methods, **more))
        hf_posenc.patch(model, "mine", verify=False)
        return model

    yield patch
    ENCODINGS._entries.pop("mine", None)
    if "positional_encoding" not in str(model):
        assert [*model.state_dict()] == names and [type(m) for m in model.modules()] == kinds
        assert torch.equal(model(ids).logits, before)


WRONG = {
    # a bias
    "no number": (bias_of(lambda h, q, k: None), r"'mine': bias must return real numbers .* \[B,H,Q,K\] = \[2, 4, 3, 7\]; got None"),
    "a float": (bias_of(lambda h, q, k: 0.5), r"'mine': bias must return .*; got float"),
    "integers": (bias_of(lambda h, q, k: k - q), r"'mine': bias must return real numbers .*; got int64 of shape \[2, 1, 3, 7\]"),
    "heads last": (bias_of(lambda h, q, k: slope(h, q, k).movedim(-1, 0)), r"bias must return .*; got float32 of shape \[7, 2, 1, 3\]"),
    "heads forgotten": (bias_of(lambda h, q, k: slope(h, q, k)[:, 0]), r"bias must return .*; got float32 of shape \[2, 3, 7\]"),
    "NaN": (bias_of(lambda h, q, k: -(q - k).float().sqrt()), r"bias must return finite numbers, for keys after .* too; NaN"),
    "+inf": (bias_of(lambda h, q, k: 1 / (q - k).abs().float()), r"bias must return finite numbers, .*; \+inf"),
    "NaN far away": (bias_of(lambda h, q, k: torch.log(40.0 - (q - k).abs())), r"bias must return finite numbers"),
    "of the query": (bias_of(lambda h, q, k: (q * h + 0 * k).float()), r"bias is the same for all keys .* softmax ignores"),
    "zero": (bias_of(lambda h, q, k: torch.zeros(())), r"bias is the same for all keys"),
    "of the head": (bias_of(lambda h, q, k: (h + 0.0 * k).float()), r"bias is the same for all keys"),
    "an error": (
        bias_of(lambda h, q, k: slope(h, q, k)[5000]),
        r"bias failed on .* \[1, 4, 1, 1\], .* IndexError: index",
    ),
    "an argument less": (
        {"bias": lambda self, q_pos, k_pos: slope(0, q_pos, k_pos)},
        r"bias failed on .* TypeError: .*positional arguments",
    ),
    # a rotation
    "no pair": (rotate_of(lambda q, k, q_pos, k_pos: q), r"'mine': rotate must return a pair of tensors; got float32"),
    "nothing": (rotate_of(lambda q, k, q_pos, k_pos: None), r"'mine': rotate must return a pair of tensors; got None"),
    "half a head": (
        rotate_of(lambda q, k, *p: (q[..., ::2], k)),
        r"rotate must return float32 of shape \[B,H,Q,D\] = .*, 16\].*; got .*, 8\]",
    ),
    "double": (rotate_of(lambda q, k, *p: (q.double(), k)), r"rotate must return float32 of shape \[B,H,Q,D\].*; got float64"),
    "the key": (rotate_of(lambda q, k, *p: (q * 2, k.half())), r"rotate must return float32 of shape \[B,G,K,D\].*; got float16"),
    "rotated to NaN": (rotate_of(lambda q, k, *p: (q / 0, k)), r"rotate must return finite numbers"),
    "unmoved": (rotate_of(lambda q, k, *p: (q, k)), r"rotate returns what it was given, at every position"),
    # embeddings
    "no embedding": (embed_of(lambda x, pos: None), r"'mine': embed must return float32 of shape \[B,Q,M\] = \[2, 7, 64\].*; got None"),
    "positions alone": (embed_of(lambda x, pos: pos.float()), r"embed must return .*; got float32 of shape \[2, 7\]"),
    "wide": (embed_of(lambda x, pos: x + pos[..., None].double()), r"embed must return float32 .*; got float64"),
    "unchanged": (embed_of(lambda x, pos: x), r"embed returns what it was given"),
    # scores from the content
    "keys first": (
        context_of(lambda q, k, *p: (k[:, :1] @ q.mT).expand(2, 4, -1, -1)),
        r"context_bias must .* = \[2, 4, 3, 7\]; got .*\[2, 4, 7, 3\]",
    ),
    "one head": (context_of(lambda q, k, *p: q[:, :1] @ k[:, :1].mT), r"context_bias must return .*; got float32 of shape \[2, 1, 3, 7\]"),
    "no reach": (context_of(lambda q, k, *p: q @ k[:, :1].mT) | {"takes_reach": True}, r"context_bias failed .* argument 'reach'"),
    "flags": (context_of(lambda q, k, *p: torch.ones(2, 4, 3, 7) > 0), r"context_bias must return real numbers .*; got bool"),
    # the cache
    "no key": ({"cached_key": lambda self, k, pos: None} | bias_of(slope), r"cached_key must return .*\[B,G,K,D\] or wider.*; got None"),
    "a narrow key": ({"cached_key": lambda self, k, pos: k[..., :3]} | bias_of(slope), r"cached_key must return .*; got .*, 3\]"),
    "a cast key": ({"cached_key": lambda self, k, pos: k.bfloat16()} | bias_of(slope), r"cached_key must return float32 .*; got bfloat16"),
    # regions
    "no list": ({"regions": lambda self, q_pos, k_pos: None}, r"'mine': regions must return a list of Region, one or more; got None"),
    "no region": ({"regions": lambda self, q_pos, k_pos: []}, r"regions must return a list of Region"),
    "a turn too narrow": (
        regions_of(lambda q, k, *p: (q[..., :2], k)),
        r"rotate of regions must return float32 .*; got .*, 2\]",
    ),
    "ends": (regions_of(lambda q, k, *p: (q, k), keys=lambda q: q), r"keys of regions must return a pair of tensors"),
    "half ends": (regions_of(lambda q, k, *p: (q, k), keys=lambda q: (q / 2, q + 1)), r"keys of regions must return int64 .*; got float32"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_stage(patch_with, case):
    methods, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        patch_with(methods)


NOT_RELATIVE = {
    "bias: of the key": (bias_of(lambda h, q, k: 0.1 * k.float()), r"'mine': bias depends on more than the distance"),
    "bias: of a ratio": (bias_of(lambda h, q, k: -(q - k).abs() / (q + 1.0)), r"'mine': bias depends on more than the distance"),
    "rotation": (rotate_of(lambda *given: tuple(turned(*given))), r"'mine': scores depend on more than the distance"),
}


@pytest.mark.parametrize("case", NOT_RELATIVE)
def test_relative_is_a_promise(patch_with, case):
    methods, message = NOT_RELATIVE[case]
    with pytest.raises(ValueError, match=message):
        patch_with(methods, relative=True)
    patch_with(methods, relative=False)


def test_what_training_can_wake_is_let_pass(patch_with):
    class Asleep(hf_posenc.PositionalEncoding):
        relative = True

        def __init__(self, geometry):
            super().__init__(geometry)
            self.slope = nn.Parameter(torch.zeros(geometry.num_heads))

        def bias(self, h, q_pos, k_pos):
            return self.slope[h] * (q_pos - k_pos)

    patch_with({}, bases=(Asleep,), relative=True)


def test_a_bias_may_hide_keys_and_do_nothing_else(patch_with):
    patch_with(bias_of(lambda h, q, k: torch.where(q - k > 5, -torch.inf, 0.0)), relative=True)


def test_a_bias_that_begins_far_away_has_an_effect(patch_with):
    patch_with(bias_of(lambda h, q, k: -((q - k).abs() > 30).float()), relative=True)


@pytest.mark.parametrize(
    "slip, stage", [("biass", "bias"), ("bais", "bias"), ("Rotate", "rotate"), ("embedd", "embed"), ("region", "regions")]
)
@pytest.mark.parametrize("beside", [{}, {"context_bias": lambda self, q, k, q_pos, k_pos, scaling: q @ k.mT}])
def test_a_slip_in_a_stage(patch_with, slip, stage, beside):
    with pytest.raises(
        ValueError, match=rf"Mine.{slip} is not a stage; was '{stage}' meant\?.* Stages: embed, embed_text, infuse, rotate, .*bias, "
    ):
        patch_with({slip: lambda self, *given: given[0]} | beside)
    assert "mine" not in ENCODINGS


@pytest.mark.parametrize("methods", [{}, {"score": lambda self: 0}, {"cached_key": lambda self, k, pos: k * 2}])
def test_no_stage_at_all(patch_with, methods):
    with pytest.raises(
        ValueError, match=r"Mine overrides none of the stages embed, embed_text, infuse, rotate, .* declares positionless = True"
    ):
        patch_with(methods)
    with pytest.raises(ValueError, match="overrides none"):  # each class says so for itself
        patch_with(methods, bases=(ENCODINGS["nope"],))
    patch_with(methods | {"positionless": True})


def test_helpers_may_be_called_like_the_stage_they_stand_by(patch_with):
    helpers = {"biases": lambda self: 0, "bias_of": lambda self: 0, "_biass": lambda self: 0}
    patch_with(bias_of(slope) | helpers)


@pytest.mark.parametrize("name", list(ENCODINGS))
def test_ours_pass(name):
    check_class(ENCODINGS[name], hf_posenc.PositionalEncoding)
    options = needed_by(name)
    for geometry in (Geometry(48, 6, 3, max_positions=8), Geometry(64, 4, max_positions=2048)):
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            check_stages(create(name, geometry, **options).to(dtype), dtype)
            with torch.device("meta"):
                check_stages(create(name, geometry, **options).to(dtype), dtype)


def test_a_trial_has_values_within_the_meta_device():
    mine = define(bias_of(lambda h, q, k: slope(h, q, k) + torch.zeros(3).sum().item()), relative=True)
    encoding = mine(Geometry(48, 6))
    encoding.options = {}
    with torch.device("meta"):
        check_stages(encoding)


def test_the_stages_are_tried_once(patch_with):
    calls = []
    methods = bias_of(lambda h, q, k: calls.append(1) or slope(h, q, k))
    model = patch_with(methods)
    tried = len(calls)
    hf_posenc.patch(model, "mine", verify=False)
    assert tried and len(calls) == tried
    hf_posenc.patch(tiny_model("llama", hidden_size=32), "mine", verify=False)  # another geometry
    assert len(calls) > tried


def test_a_trial_leaves_the_random_numbers_alone(patch_with):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    patch_with(bias_of(lambda h, q, k: slope(h, q, k) - torch.rand(()) * 1e-9))
    assert torch.equal(torch.rand(3), expected)


CELL = """
@hf_posenc.register("from_a_cell")
class Cell(hf_posenc.PositionalEncoding):
    relative = True

    def bias(self, h, q_pos, k_pos):
        return -{slope} * (q_pos - k_pos).abs().float()
"""


def test_a_cell_of_a_notebook_is_run_twice():
    notebook = {"hf_posenc": hf_posenc, "__name__": "__main__"}
    model, ids = tiny_model("llama"), torch.arange(1, 9)[None]
    try:
        logits = []
        for slope in (0.1, 0.7):
            exec(CELL.format(slope=slope), notebook)
            logits.append(hf_posenc.patch(model, "from_a_cell")(ids).logits)
        assert not torch.allclose(*logits)
        with pytest.raises(ValueError, match="'from_a_cell' is registered twice"):
            exec(CELL.format(slope=0.7).replace("Cell", "AnotherCell"), notebook)
        with pytest.raises(ValueError, match="'from_a_cell' is registered twice"):
            exec(CELL.format(slope=0.7), notebook | {"__name__": "elsewhere"})
        assert torch.equal(hf_posenc.patch(model, "from_a_cell")(ids).logits, logits[1])
    finally:
        ENCODINGS._entries.pop("from_a_cell")
