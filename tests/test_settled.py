"""Positions for attention modules to which the family does not hand them down."""

import threading

import pytest
import torch
from tiny import tiny_model
from torch.testing import assert_close

import hf_posenc
from hf_posenc.patching import patch_of

NOT_HANDED_DOWN = "persimmon"
GENERATOR = torch.Generator().manual_seed(7)
IDS, OTHER = (torch.randint(3, 60, (2, length), generator=GENERATOR) for length in (9, 6))
MASK = torch.ones_like(IDS)
MASK[0, :4] = 0


def gradients(model):
    """Of two forward passes at other positions, both before the first backward."""
    losses = [model(IDS, attention_mask=MASK).logits[MASK.bool()], model(OTHER).logits]
    for loss in losses:
        loss.square().mean().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("arch", [NOT_HANDED_DOWN, "llama"])
@pytest.mark.parametrize("name", ["alibi", "rerope"])
def test_checkpointed_layers_run_again_at_their_own_positions(arch, name, reentrant):
    model = hf_posenc.patch(tiny_model(arch), name).train()
    model.config.hidden_dropout = model.config.attention_dropout = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    wanted = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    found = gradients(model)
    for key, gradient in wanted.items():
        assert_close(found[key], gradient, atol=1e-5, rtol=1e-4, msg=key)
    functions = [m.__dict__["_gradient_checkpointing_func"] for m in model.modules() if "_gradient_checkpointing_func" in m.__dict__]
    hf_posenc.unpatch(model)
    after = [m.__dict__["_gradient_checkpointing_func"] for m in model.modules() if "_gradient_checkpointing_func" in m.__dict__]
    assert all(type(f).__module__.startswith("hf_posenc") for f in functions)
    assert not any(type(f).__module__.startswith("hf_posenc") for f in after)


@torch.no_grad()
def test_threads_have_their_own_positions():
    """Two threads in one model: each layer waits until the other thread is in the same layer, at other positions."""
    model = hf_posenc.patch(tiny_model(NOT_HANDED_DOWN), "alibi")
    inputs = [{"input_ids": IDS, "attention_mask": MASK}, {"input_ids": OTHER}]
    wanted, found, barrier = [model(**x).logits for x in inputs], [None, None], threading.Barrier(2)
    for attention in patch_of(model).attentions.values():
        attention.register_forward_pre_hook(lambda *_: [barrier.wait(10), None][1])

    def run(i):
        with torch.no_grad():
            found[i] = model(**inputs[i]).logits

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for have, want in zip(found, wanted, strict=True):
        assert_close(have, want)


@torch.no_grad()
def test_a_layer_on_its_own_is_an_error_not_a_guess():
    model = hf_posenc.patch(tiny_model(NOT_HANDED_DOWN), "alibi")
    seen = []
    handle = (
        patch_of(model).attentions[0].register_forward_pre_hook(lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    )
    model(OTHER, use_cache=False)
    handle.remove()
    args, kwargs = seen[0]
    with pytest.raises(RuntimeError, match="outside of the forward pass of its backbone"):
        patch_of(model).attentions[0](*args, **kwargs)


@torch.no_grad()
def test_an_error_leaves_no_positions_behind():
    model = hf_posenc.patch(tiny_model(NOT_HANDED_DOWN), "alibi")
    settled = patch_of(model).settled

    def fail(*_):
        raise KeyError("within a layer")

    handle = patch_of(model).attentions[1].register_forward_pre_hook(fail)
    with pytest.raises(KeyError):
        model(OTHER)
    assert settled.pos is None
    handle.remove()
    assert model(OTHER).logits.isfinite().all() and settled.pos is None
