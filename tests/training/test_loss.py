"""The loss in chunks against the loss of transformers itself, its gradients, its memory, and its use by Trainer."""

import copy
import inspect
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import design
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny import tiny_config, tiny_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, default_data_collator

import hf_posenc
from hf_posenc.benchmarking import peak_bytes
from hf_posenc.training import LongCE, chunk_loss, full_loss

SCALED = {
    "cohere": {"logit_scale": 3.0},
    "granite": {"logits_scaling": 0.2},
    "gemma2": {"final_logit_softcapping": 2.0},
    "opt": {"word_embed_proj_dim": 16},
}
FAMILIES = sorted({*design.FAMILIES, *SCALED})


def model_of(family="llama", dtype=torch.float32, **changes):
    off = {key: 0.0 for key, value in vars(tiny_config(family)).items() if "drop" in key and isinstance(value, float)}
    return tiny_model(family, **off, **SCALED.get(family, {}), **changes).to(dtype).train()


def batch(rows=2, length=11, seed=0):
    """Ids, labels with gaps at the ends and in the middle, and padding on the right of the second row."""
    ids = torch.randint(3, 60, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask, labels = torch.ones_like(ids), ids.clone()
    labels[0, :2] = labels[0, 5] = -100
    mask[1, -3:], labels[1, -3:] = 0, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def step(model, **inputs):
    model.zero_grad()
    output = model(**inputs)
    output.loss.backward()
    return output, gradients(model)


def assert_same(found, expected, rtol=1e-4):
    assert found.keys() == expected.keys()
    scale = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        assert_close(found[name], gradient, atol=rtol * scale / 10, rtol=rtol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("family", "dtype"), [*((f, torch.float32) for f in FAMILIES), *((f, torch.float64) for f in SCALED)])
def test_loss_and_gradients_are_those_of_the_stock_model(family, dtype):
    """transformers computes the loss of a float64 model in float32, so no more than that can agree."""
    model, inputs = model_of(family, dtype), batch()
    stock, expected = step(model, **inputs)
    for chunk in (4, 1000):
        chunk_loss(model, chunk)
        ours, found = step(model, **inputs)
        assert ours.logits is None
        assert ours.loss.item() == pytest.approx(stock.loss.item(), rel=1e-6)
        assert_same(found, expected, 1e-4)
    full_loss(model)
    again, found = step(model, **inputs)
    assert torch.equal(again.logits, stock.logits) and torch.equal(again.loss, stock.loss)
    assert "forward" not in model.__dict__


def test_the_loss_in_float64_by_hand():
    model, inputs = chunk_loss(model_of(dtype=torch.float64), 3), batch()
    with torch.no_grad():
        logs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.softmax(-1).log()
        nats = [-logs[b, t, inputs["labels"][b, t + 1]] for b in range(2) for t in range(10) if inputs["labels"][b, t + 1] >= 0]
        assert model(**inputs).loss.item() == pytest.approx((sum(nats) / len(nats)).item(), rel=1e-12)
        assert model(**inputs, num_items_in_batch=100).loss.item() == pytest.approx(sum(nats).item() / 100, rel=1e-12)


@pytest.mark.parametrize("count", [7, torch.tensor(7)])
@pytest.mark.parametrize("more", [{}, {"shift": True}, {"positions": True}, {"return_dict": False}, {"output_hidden_states": True}])
def test_the_arguments_of_the_stock_forward_mean_the_same(count, more):
    model, inputs = model_of(), batch()
    inputs["num_items_in_batch"] = count
    if more.pop("shift", False):
        inputs["shift_labels"] = F.pad(inputs["labels"], (0, 1), value=-100)[:, 1:].flip(0).contiguous()
    if more.pop("positions", False):
        inputs |= {"position_ids": torch.arange(11).repeat(2, 1) % 6, "attention_mask": None, "use_cache": False}
    stock = model(**inputs, **more)
    ours = chunk_loss(model, 4)(**inputs, **more)
    assert type(ours) is tuple if more.get("return_dict") is False else ours.logits is None
    assert ours[0].item() == pytest.approx(stock[0].item(), rel=1e-6)
    if more.get("output_hidden_states"):
        assert all(map(torch.equal, ours.hidden_states, stock.hidden_states))
    names = list(inspect.signature(model.forward).parameters)
    positional = {**dict.fromkeys(names[: names.index("labels") + 1]), **inputs}
    count = positional.pop("num_items_in_batch")
    first = [positional.pop(name) for name in names[: names.index("labels") + 1]]
    assert model(*first, num_items_in_batch=count, **positional).loss.item() == pytest.approx(ours[0].item(), rel=1e-6)


@torch.no_grad()
def test_without_labels_it_is_the_stock_model():
    model, ids = model_of().eval(), batch()["input_ids"]
    stock, signature = model(ids), inspect.signature(model.forward)
    chunk_loss(model)
    assert torch.equal(model(ids).logits, stock.logits)
    assert inspect.signature(model.forward) == signature
    assert model.generate(ids, max_new_tokens=3).shape == (2, 14)


def test_a_copy_and_a_pickle_live_their_own_lives():
    model, inputs = chunk_loss(model_of(), 4), batch()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    assert twin(**inputs).logits is None and twin(**inputs).loss != model(**inputs).loss
    full_loss(twin)
    assert twin(**inputs).logits is not None and model(**inputs).logits is None
    assert pickle.loads(pickle.dumps(model))(**inputs).loss.item() == pytest.approx(model(**inputs).loss.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["yarn", "alibi", "shaw", "rerope"])
def test_patched_models_and_gradient_checkpointing(name):
    model, inputs = model_of(max_position_embeddings=64), batch()
    hf_posenc.patch(model, name, **({"factor": 4.0} if name == "yarn" else {}))
    model.activation_checkpointing_enable()
    stock, expected = step(model, **inputs, use_cache=False)
    ours, found = step(chunk_loss(model, 4), **inputs, use_cache=False)
    assert ours.loss.item() == pytest.approx(stock.loss.item(), rel=1e-6)
    assert_same(found, expected)


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "lm_head"]])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("saved", [None, ["lm_head"]])
def test_lora_on_the_output_layer_and_off_it(targets, first, saved):
    if saved and "lm_head" in targets:
        return
    model, inputs = model_of(tie_word_embeddings=False), batch()
    if first:
        chunk_loss(model, 4)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=targets, modules_to_save=saved, init_lora_weights=False)).train()
    ours, found = step(chunk_loss(model, 4), **inputs)
    assert ours.logits is None
    stock, expected = step(full_loss(model), **inputs)
    assert stock.logits is not None
    assert ours.loss.item() == pytest.approx(stock.loss.item(), rel=1e-6)
    assert_same(found, expected)
    assert any("lm_head" in parameter for parameter in found) == ("lm_head" in targets or bool(saved))


def test_autocast_gives_what_the_stock_model_gives_under_it():
    model, inputs = model_of(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        stock, expected = step(model, **inputs)
        ours, found = step(chunk_loss(model, 4), **inputs)
    assert ours.loss.dtype == stock.loss.dtype == torch.float32
    assert ours.loss.item() == pytest.approx(stock.loss.item(), rel=1e-6)
    full = model_of()(**inputs).loss.item()
    assert abs(stock.loss.item() - full) > 1e-5 * full  # that was bfloat16
    assert_same(found, expected, 2e-2)


def test_bfloat16_weights_have_a_loss_in_float32_too():
    model, inputs = model_of(dtype=torch.bfloat16), batch()
    stock = model(**inputs).loss
    ours = chunk_loss(model, 1000)(**inputs).loss
    assert ours.dtype == stock.dtype == torch.float32
    assert ours.item() == pytest.approx(stock.item(), rel=1e-5)


class Largest(TorchDispatchMode):
    """Number of elements in the largest floating-point storage that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return out


def test_all_logits_are_never_held():
    """512 tokens, 4,000 words, chunks of 32: no tensor of the step is larger than the output layer, nor do the chunks add up."""
    model = model_of(vocab_size=4000, max_position_embeddings=256)
    ids = torch.randint(0, 4000, (2, 256), generator=torch.Generator().manual_seed(0))
    step(model, input_ids=ids, labels=ids)  # the gradients exist from here on
    largest, peak = {}, {}
    for chunked in (False, True):
        (chunk_loss if chunked else full_loss)(model, *([32] if chunked else []))
        with Largest() as found:
            step(model, input_ids=ids, labels=ids)
        largest[chunked] = found.elements
        peak[chunked] = peak_bytes(lambda: step(model, input_ids=ids, labels=ids), "cpu")
    assert largest[False] >= 512 * 4000 and largest[True] == 64 * 4000
    assert peak[False] > 2 * 512 * 4000 * 4 and peak[True] < 512 * 4000 * 4


def test_what_it_cannot_do_is_refused_before_anything_changes():
    with pytest.raises(ValueError, match="at least 1 token"):
        chunk_loss(model_of(), 0)
    with pytest.raises(ValueError, match="unwrap it first"):
        chunk_loss(torch.nn.Linear(2, 2))
    router = model_of("gpt_oss", output_router_logits=True)
    with pytest.raises(ValueError, match="output_router_logits=False"):
        chunk_loss(router)
    late = chunk_loss(model_of("gpt_oss"))
    with pytest.raises(ValueError, match="output_router_logits=False"):
        late(**batch(), output_router_logits=True)
    replaced = model_of()
    replaced.forward = replaced.forward
    with pytest.raises(ValueError, match="replaced by another tool"):
        chunk_loss(replaced)
    other_loss = model_of()
    other_loss.loss_function = lambda logits, labels, **kwargs: logits.float().logsumexp(-1).mean()
    with pytest.raises(ValueError, match="more than the cross-entropy"):
        chunk_loss(other_loss)
    by_row = model_of()
    by_row.lm_head.register_forward_hook(lambda module, args, out: out.flip(1))
    with pytest.raises(ValueError, match="more than the cross-entropy"):
        chunk_loss(by_row)
    head = model_of()
    head.register_forward_hook(lambda module, args, out: setattr(out, "logits", out.logits / 2))
    with pytest.raises(ValueError, match="not understood"):
        chunk_loss(head)
    for model in (router, other_loss, by_row, head):
        assert "forward" not in model.__dict__ and "loss_chunk" not in model.__dict__


def rows(count=16, length=12):
    ids = torch.randint(3, 60, (count, length), generator=torch.Generator().manual_seed(5))
    labels = ids.clone()
    for row in range(count):  # as many gaps as the number of the row, so that batches weigh differently
        labels[row, 1 : 1 + row % 9] = -100
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def trained(model, folder, **more):
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 3, "logging_steps": 1, "use_cpu": True}
    settings |= {"report_to": "none", "learning_rate": 1e-2, "label_names": ["labels"], "disable_tqdm": True}
    trainer = Trainer(
        model,
        TrainingArguments(str(folder), **(settings | more)),
        train_dataset=rows(),
        eval_dataset=rows(5),
        data_collator=default_data_collator,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer, [*losses, trainer.evaluate()["eval_loss"]]


@pytest.mark.parametrize(
    "more",
    [{}, {"label_smoothing_factor": 0.1}, {"bf16": True}, {"activation_checkpointing": True}, {"average_tokens_across_devices": False}],
    ids=str,
)
def test_trainer_gives_the_same_losses(more, tmp_path):
    _, expected = trained(model_of(), tmp_path / "stock", **more)
    _, found = trained(chunk_loss(model_of(), 5), tmp_path / "chunked", **more)
    assert found == pytest.approx(expected, rel=1e-3 if more.get("bf16") else 1e-5)


def test_after_training_in_bfloat16_the_model_is_still_itself(tmp_path):
    """accelerate wraps the forward for autocast; what is left when it unwraps it again is the chunked loss, and undoes."""
    trainer, _ = trained(chunk_loss(model_of(), 5), tmp_path, bf16=True)
    assert trainer.model(**batch()).logits is None
    chunk_loss(trainer.model, 6)
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    assert model(**batch()).logits is None
    expected = copy.deepcopy(model).float()(**batch()).loss
    assert torch.equal(model(**batch()).loss, expected)
    assert full_loss(model)(**batch()).loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert model(**batch()).logits is not None
    trainer.save_model(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(batch()["input_ids"]).logits, model.eval()(batch()["input_ids"]).logits)


RANK = """
import json, pathlib, sys
sys.path.insert(0, sys.argv[3])
from test_loss import WEIGHTS, model_of, sharded, trained
from hf_posenc.training import chunk_loss
trainer, losses = trained(chunk_loss(model_of(), 5, WEIGHTS), sys.argv[1])
assert trainer.accelerator.num_processes == 2 and type(trainer.model_wrapped).__name__ == "DistributedDataParallel"
if trainer.is_world_process_zero():
    pathlib.Path(sys.argv[2]).write_text(json.dumps(losses))
sharded()
__import__("torch").distributed.destroy_process_group()
"""


WEIGHTS = LongCE(gamma=3.0, short=3, stride=2)


def sharded():
    """In each process: a model whose weights lie in pieces on the two (FSDP2) has the loss and the gradients of a whole one."""
    for weights in (None, WEIGHTS):
        model, whole = chunk_loss(model_of(), 4, weights), chunk_loss(model_of(), 4, weights) if weights else model_of()
        for module in (*model.model.layers, model):
            fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
        ours, found = step(model, **batch())
        stock, expected = step(whole, **batch())
        assert ours.logits is None and ours.loss.item() == pytest.approx(stock.loss.item(), rel=1e-6)
        assert_same({name: gradient.full_tensor() for name, gradient in found.items()}, expected)


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path):
    script, losses, here = tmp_path / "rank.py", tmp_path / "losses.json", Path(__file__).parent
    script.write_text(RANK)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(here.parents[1]), str(here.parent)))}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(script)]
    arguments = [str(tmp_path / "two"), str(losses), str(here)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    _, one = trained(chunk_loss(model_of(), 5, WEIGHTS), tmp_path / "one", per_device_train_batch_size=4)
    assert json.loads(losses.read_text())[:-1] == pytest.approx(one[:-1], rel=1e-4)
