"""Models whose layers lie on two devices, as `device_map="auto"` puts them: the numbers of the CPU, no operation that mixes the devices,
and what layers share moved once, not for each of them. The devices are simulated, the hooks between them are accelerate's own."""

import copy
from unittest import mock

import pytest
import simulated as simulation
import torch
from accelerate import dispatch_model
from simulated import host, simulated
from tiny import options_for, tiny_model
from torch import nn
from torch.testing import assert_close
from transformers import DynamicCache

import hf_posenc
from hf_posenc.patching import patch_of

KINDS = ["alibi", "t5", "fire", "rerope", "shaw", "transformer_xl", "longrope", "dynamic_ntk", "learned", "sinusoidal", "yarn", "nope"]
LENGTH, NATIVE, WINDOW = 150, 80, 70  # tokens: two blocks of 128
FIRST = 2  # layers on the first device; the others are on the second
LAYERS, MORE = 4, 6
CLOSE = {"atol": 2e-4, "rtol": 2e-4}
IDS = torch.randint(3, 60, (2, LENGTH), generator=torch.Generator().manual_seed(2))
MASK = torch.ones(2, LENGTH, dtype=torch.long)
MASK[0, :90] = 0
RESTARTING = torch.cat((torch.arange(60), torch.arange(LENGTH - 60)))[None].expand(2, -1)
LAYOUTS = {
    "plain": {},
    "padded": {"attention_mask": MASK},
    "packed": {"position_ids": RESTARTING, "use_cache": False},
    "chunks": {"attention_mask": MASK},
    "backward": {},
}
pytestmark = pytest.mark.skipif(not simulation.available(), reason="needs g++, and a PyTorch without CUDA")


@pytest.fixture
def device():
    with simulated() as device:
        yield device


def built(arch, name, layers=LAYERS, backend="sdpa"):
    changes = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * layers} if arch == "gemma3_text" else {}
    changes = {key: x[:layers] if isinstance(x, list) else x for key, x in changes.items()}
    native = {"dynamic_ntk": LENGTH - 12, None: 2 * LENGTH}.get(name, NATIVE)  # of a data-dependent one, every further token is a region
    return tiny_model(arch, attn_implementation=backend, max_position_embeddings=native, num_hidden_layers=layers, **changes)


def patched(model, name, layers="all", **options):
    if name is None:
        return model
    torch.manual_seed(7)
    options |= options_for(name)
    if "max_positions" in options:
        options["max_positions"] = 2 * LENGTH
    return hf_posenc.patch(model, name, layers=layers, **options)


def dispatched(model, **elsewhere):
    """Spread over both devices: an encoding of one layer with its layer, the others with the embeddings."""
    prefix, record, places = model.base_model_prefix, patch_of(model), {"lm_head": 0}
    for name, child in model.base_model.named_children():
        if isinstance(child, nn.ModuleList):
            places |= {f"{prefix}.{name}.{i}": int(i >= FIRST) for i in range(len(child))}
        else:
            places[f"{prefix}.{name}"] = int(name in ("norm", "ln_f"))
    for placement in record.placements:
        if not placement.in_table and len(placement.layers) == 1:
            places[f"{prefix}.{placement.attribute}"] = int(placement.layers[0] >= FIRST)
    places |= {f"{prefix}.{name}": place for name, place in elsewhere.items()}
    with mock.patch("accelerate.utils.modeling.clear_device_cache"):  # takes its time, after every tensor
        return dispatch_model(model, places, skip_keys=model._skip_keys_device_placement)


def computed(model, layout, ids, inputs):
    """Logits on the host; after a backward pass where that is the layout."""
    if layout == "chunks":
        cache, parts, start = DynamicCache(config=model.config), [], 0
        for end in (LENGTH - 20, LENGTH - 1, LENGTH):
            parts.append(model(ids[:, start:end], attention_mask=inputs["attention_mask"][:, :end], past_key_values=cache).logits)
            start = end
        return torch.cat([host(x) for x in parts], 1)
    logits = model(ids, **inputs).logits
    if layout == "backward":
        logits.square().mean().backward()
    return host(logits)


def both(model, twin, layout, dispatch=lambda model: model, ids=IDS):
    """The devices after a pass of `model`, once it is dispatched, that is compared with that of `twin` on the CPU."""
    inputs = {key: x[:, : ids.shape[1]] if isinstance(x, torch.Tensor) else x for key, x in LAYOUTS[layout].items()}
    with torch.set_grad_enabled(layout == "backward"):
        wanted = computed(twin, layout, ids, inputs)
        with simulated() as device:
            model = dispatch(model)
            there = {key: x.to("cuda:0") if isinstance(x, torch.Tensor) else x for key, x in inputs.items()}
            moved = ids.to("cuda:0")
            device.clear()
            found = computed(model, layout, moved, there)
    real = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    assert_close(found[real], wanted[real].detach(), **CLOSE)
    for (path, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), path
        if one.grad is not None:
            assert one.grad.device == one.device
            tolerance = 1e-4 * max(1.0, other.grad.abs().max().item())
            assert_close(host(one.grad), other.grad, atol=tolerance, rtol=1e-3, msg=lambda m, p=path: f"{p}: {m}")
    assert not device.mixes
    assert not device.refused
    return device


def felt(arch, name, layout, when="after", layers=LAYERS, backend="sdpa", ids=IDS):
    model = built(arch, name, layers, backend)
    twin = patched(copy.deepcopy(model), name)
    if backend == "flex_attention":
        twin.set_attn_implementation("eager")
    steps = [dispatched, lambda model: patched(model, name)]
    first, second = steps if when == "after" else steps[::-1]
    return both(model, twin, layout, lambda model: second(first(model)), ids)


def grown(*case, **more):
    """What `MORE` layers move and wait for beyond what `LAYERS` do, and copy."""
    few, many = (felt(*case, layers=layers, **more) for layers in (LAYERS, MORE))
    totals = [[(x.transfers + x.stock_transfers).total(), (x.waits + x.stock_waits).total(), x.copies.total()] for x in (few, many)]
    return [after - before for before, after in zip(*totals, strict=True)]


# -- the simulation itself --------------------------------------------------------------------------------------------


def test_a_transfer_is_no_wait_and_no_launch(device):
    x = torch.arange(4.0).to("cuda:0").requires_grad_()
    device.clear()
    y = x.to(1)
    assert y.device == torch.device("cuda:1")
    assert torch.equal(host(y), host(x))
    assert device.transfers.total() == 1
    assert not (device.launches or device.waits or device.copies or device.mixes)
    torch.zeros(4, device="cuda:0").copy_(y.detach())
    assert device.transfers.total() == 2
    (y * 2).sum().backward()
    assert x.grad.device == x.device
    assert device.transfers.total() == 3
    assert not device.mixes


@pytest.mark.parametrize(
    "program",
    [
        lambda x, y: x + y,
        lambda x, y: x * y[0],
        lambda x, y: x[y.long()],
        lambda x, y: torch.cat((x, y)),
        lambda x, y: x.index_put_((y.long(),), x.clone()),
        lambda x, y: nn.functional.scaled_dot_product_attention(*(z.view(1, 1, 4, 1) for z in (x, x, y))),
    ],
)
def test_what_two_devices_do_not_do_together(device, program):
    x, y = torch.arange(4.0).to("cuda:0"), torch.arange(4.0).to("cuda:1")
    device.clear()
    program(x, y)
    assert device.mixes.total() == 1
    assert "test_two_devices.py" in next(iter(device.mixes))


def test_a_stock_model_is_spread(device):
    model = built("llama", None)
    wanted = model(IDS).logits
    model = dispatched(copy.deepcopy(model))
    assert [next(layer.parameters()).device.index for layer in model.model.layers] == [0, 0, 1, 1]
    device.clear()
    assert torch.equal(host(model(IDS.to("cuda:0")).logits), wanted)
    assert device.stock_transfers or device.transfers
    assert not (device.mixes or device.waits)


# -- encodings --------------------------------------------------------------------------------------------------------

_stock: dict = {}


def moves_no_more_than_stock(arch, name, layout, when):
    if (arch, layout) not in _stock:
        _stock[arch, layout] = grown(arch, None, layout)
    allowed, found = _stock[arch, layout], grown(arch, name, layout, when)
    assert all(x <= most for x, most in zip(found, allowed, strict=True)), (found, allowed)


@pytest.mark.cover("name", "layout when", name=KINDS, layout=LAYOUTS, when=["before", "after"])
def test_an_encoding_of_each_kind(name, layout, when):
    """Dispatched before the patch, or after it."""
    moves_no_more_than_stock("llama", name, layout, when)


@pytest.mark.cover("name", "arch", name=KINDS, arch=["gpt2", "gemma3_text"])
def test_families(arch, name):
    felt(arch, name, "chunks")
    moves_no_more_than_stock(arch, name, "padded", "after")


@pytest.mark.parametrize("layout", ["padded", "packed", "chunks"])
@pytest.mark.parametrize("name", ["alibi", "rerope"])
def test_loaded_for_flex_attention(name, layout):
    """Where stock transformers leaves what a mask looks at on the first device."""
    felt("llama", name, layout, backend="flex_attention")


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex_attention"])
def test_positions_and_masks_are_moved_once(backend):
    """Beside the cosines and sines that transformers hands to every layer."""
    assert grown("llama", "t5", "padded", backend=backend, ids=IDS[:, :100]) == [2 * (MORE - LAYERS), 0, 0]


@pytest.mark.parametrize("name", ["fire", "shaw", "transformer_xl"])
def test_an_encoding_of_one_layer_lives_with_it(device, name):
    model = patched(dispatched(built("llama", name)), name)
    homes = [p.encoding for p in patch_of(model).placements]
    assert [{x.device.index for x in encoding.parameters()} for encoding in homes] == [{0}, {0}, {1}, {1}]
    hf_posenc.unpatch(model)
    patched(model, "t5")
    assert patch_of(model).placements[0].encoding.table.device == model.model.embed_tokens.weight.device


def test_a_rotation_in_some_layers():
    model = built("llama", "yarn")
    both(model, patched(copy.deepcopy(model), "yarn", [1, 2]), "padded", lambda model: patched(dispatched(model), "yarn", [1, 2]))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(("name", "options"), [("t5", {}), ("fire", {"shared": True}), ("shaw", {})])
def test_gradients_of_what_layers_share_with_checkpointing(name, options, reentrant):
    model = built("llama", name)
    twin = patched(copy.deepcopy(model), name, **options)
    twin.train()

    def dispatch(model):
        model = patched(dispatched(model), name, **options)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        return model.train()

    both(model, twin, "backward", dispatch)


@pytest.mark.parametrize("name", ["t5", "fire", "shaw", "transformer_xl", "learned", "rerope"])
def test_an_encoding_that_is_offloaded(name):
    """`device_map="auto"` sends to the CPU what does not fit, the encodings first, which are last in the backbone."""
    model = patched(built("llama", name), name)
    attributes = [placement.attribute for placement in patch_of(model).placements]
    held = [not list(p.encoding.parameters()) for p in patch_of(model).placements]

    def dispatch(model):
        model = dispatched(model, **dict.fromkeys(attributes, "cpu"))
        assert all(nothing or next(getattr(model.model, x).parameters()).is_meta for x, nothing in zip(attributes, held, strict=True))
        return model

    both(model, copy.deepcopy(model), "padded", dispatch)
