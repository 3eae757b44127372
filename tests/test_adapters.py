"""An adapter of PEFT carries the encoding of the base that it was trained on."""

import copy
import json
import pickle
import subprocess
import sys

import peft
import pytest
import torch
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file
from tiny import options_for, save_tiny
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import hf_posenc
from hf_posenc.patching import patch_of
from hf_posenc.saved_adapter import PARAMETERS, AdapterType

IDS = torch.arange(5, 17)[None]
CASES = [("llama", name) for name in ("alibi", "yarn", "rerope", "t5", "shaw", "fire")] + [("gpt2", "alibi"), ("gpt2", "learned")]
"""In the native slot or not; parameters in none, in one module or in each layer, and in the place of the model's own table."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {arch: save_tiny(tmp_path_factory.mktemp(arch), arch) for arch in ("llama", "gpt2")}


@pytest.fixture
def stock(folders):
    return lambda arch="llama": AutoModelForCausalLM.from_pretrained(folders[arch])


def lora(model, **changes):
    """A PEFT model around `model`, in which everything that is trained has other numbers than at the start."""
    options = {"r": 2, "init_lora_weights": False, "task_type": "CAUSAL_LM", "modules_to_save": hf_posenc.learned_modules(model) or None}
    return moved(peft.get_peft_model(model, peft.LoraConfig(**options | changes)).eval())


@torch.no_grad()
def moved(model):
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.rand_like(parameter) / 10)
    return model


@torch.no_grad()
def logits(model):
    return model(IDS).logits


@pytest.mark.parametrize(("arch", "name"), CASES)
def test_a_stock_base_gets_the_encoding_before_the_adapter(arch, name, stock, tmp_path):
    model = lora(hf_posenc.patch(stock(arch), name, **options_for(name)))
    expected = logits(model)
    with model.disable_adapter():
        off = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(model), expected)
    for again in (peft.PeftModel.from_pretrained(stock(arch), tmp_path), peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path)):
        assert torch.equal(logits(again), expected)
        assert hf_posenc.inspect(again).fingerprint == hf_posenc.inspect(model).fingerprint
        with again.disable_adapter():
            assert torch.equal(logits(again), off)
    merged = again.merge_and_unload()
    assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), logits(merged))
    assert not any(torch.allclose(other, expected) for other in (off, logits(stock(arch))))


def test_layers_options_and_several_encodings(stock, tmp_path):
    base = hf_posenc.patch(hf_posenc.patch(stock(), "alibi", layers=[0]), "shaw", layers=[1], max_distance=3)
    model = lora(base)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(stock(), tmp_path)
    assert_close(logits(again), logits(model), atol=1e-5, rtol=1e-5)
    asked = [(p.request.name, p.request.options, p.layers) for p in patch_of(again).placements]
    assert asked == [("alibi", {}, (0,)), ("shaw", {"max_distance": 3}, (1,))]


@pytest.mark.parametrize("order", ["adapter first", "a base from its own checkpoint", "dora"])
def test_however_the_two_came_together(order, stock, tmp_path):
    if order == "adapter first":
        model = moved(hf_posenc.patch(lora(stock()), "shaw"))
    elif order == "dora":
        model = lora(hf_posenc.patch(stock(), "shaw"), use_dora=True)
    else:
        hf_posenc.patch(stock(), "shaw").save_pretrained(tmp_path / "base")
        model = lora(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(peft.PeftModel.from_pretrained(stock(), tmp_path)), logits(model))
    assert torch.equal(logits(peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_other_adapters_than_lora(stock, tmp_path):
    model = peft.get_peft_model(hf_posenc.patch(stock(), "alibi"), peft.IA3Config(task_type="CAUSAL_LM", init_ia3_weights=False))
    moved(model).save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(stock(), tmp_path)
    assert again.active_peft_config.peft_type == "IA3" and torch.equal(logits(again), logits(model))


def test_a_config_without_a_task(stock, tmp_path):
    model = lora(hf_posenc.patch(stock(), "alibi"), task_type=None)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_the_modules_that_peft_is_to_train_are_found(stock):
    assert hf_posenc.learned_modules(hf_posenc.patch(stock(), "shaw")) == ["positional_encoding", "positional_encoding_1"]
    assert hf_posenc.learned_modules(hf_posenc.patch(stock("gpt2"), "learned", max_positions=20)) == ["wpe"]
    assert hf_posenc.learned_modules(hf_posenc.patch(stock(), "alibi")) == hf_posenc.learned_modules(stock()) == []
    model = lora(hf_posenc.patch(stock(), "shaw"))
    assert {name.split(".")[3] for name, p in model.named_parameters() if p.requires_grad and "positional" in name} == {
        "positional_encoding",
        "positional_encoding_1",
    }


# -- loaded by transformers ---------------------------------------------------------------------------------------------


def test_transformers_loads_adapters_too(stock, tmp_path):
    model = lora(hf_posenc.patch(stock(), "alibi"))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))
    late = stock()
    late.load_adapter(str(tmp_path))
    assert torch.equal(logits(late), logits(model))


def test_parameters_that_transformers_does_not_see_are_asked_for(stock, tmp_path):
    lora(hf_posenc.patch(stock(), "t5")).save_pretrained(tmp_path)
    base = stock()
    with pytest.raises(ValueError, match="load it with PeftModel"):
        base.load_adapter(str(tmp_path))
    assert not patch_of(base).placements and torch.equal(logits(base), logits(stock()))


# -- several ------------------------------------------------------------------------------------------------------------


def test_several_adapters_on_one_encoding(stock, tmp_path):
    model = lora(hf_posenc.patch(stock(), "t5"))
    model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
    expected = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        expected[name] = logits(moved(model))
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(stock(), tmp_path)
    again.load_adapter(tmp_path / "other", "other")
    for name in ("other", "default", "other"):
        again.set_adapter(name)
        assert torch.equal(logits(again), expected[name])
    assert torch.equal(logits(peft.PeftModel.from_pretrained(stock(), tmp_path / "other")), expected["other"])
    assert not torch.allclose(expected["default"], expected["other"])


def test_an_adapter_on_another_encoding_is_refused(stock, tmp_path):
    for name in ("t5", "alibi"):
        lora(hf_posenc.patch(stock(), name)).save_pretrained(tmp_path / name)
    lora(hf_posenc.patch(stock(), "t5")).save_pretrained(tmp_path / "another t5")
    model = peft.PeftModel.from_pretrained(stock(), tmp_path / "t5")
    expected = logits(model)
    with pytest.raises(ValueError, match="trained on 'alibi', and this model has 't5': load it on a stock base"):
        model.load_adapter(tmp_path / "alibi", "other")
    with pytest.raises(ValueError, match="an encoding with other parameters than those of this model"):
        model.load_adapter(tmp_path / "another t5", "other")
    with pytest.raises(ValueError, match="trained on 'alibi', and this model has 'yarn'"):
        peft.PeftModel.from_pretrained(hf_posenc.patch(stock(), "yarn", factor=2.0), tmp_path / "alibi")
    assert list(model.peft_config) == ["default"] and torch.equal(logits(model), expected)
    plain = lora(stock())
    with pytest.raises(ValueError, match=r"(?s)different peft types.*import hf_posenc"):
        plain.load_adapter(tmp_path / "alibi", "other")
    with pytest.raises(ValueError, match="Incompatible PEFT types"):
        hotswap_adapter(model, tmp_path / "t5", "default")
    assert torch.equal(logits(model), expected)


def test_a_patched_base_takes_what_its_encoding_has_learned(stock, tmp_path):
    model = lora(hf_posenc.patch(stock(), "shaw"), modules_to_save=None)
    model.save_pretrained(tmp_path)
    base = hf_posenc.patch(stock(), "shaw")
    assert torch.equal(logits(peft.PeftModel.from_pretrained(base, tmp_path)), logits(model))


# -- what is written ----------------------------------------------------------------------------------------------------


def test_a_stock_base_has_a_stock_adapter(stock, tmp_path):
    model = lora(hf_posenc.patch(stock(), "alibi"))
    model.save_pretrained(tmp_path / "patched")
    hf_posenc.unpatch(model).save_pretrained(tmp_path / "stock")
    said = json.loads((tmp_path / "stock" / "adapter_config.json").read_text())
    assert said["peft_type"] == "LORA" and not any("posenc" in key or "positional" in key for key in said)
    assert type(model.active_peft_config) is peft.LoraConfig
    again = peft.PeftModel.from_pretrained(stock(), tmp_path / "stock")
    assert not patch_of(again).placements and torch.equal(logits(again), logits(model))


def test_a_saved_configuration_can_be_copied_and_read(stock, tmp_path):
    model = lora(hf_posenc.patch(stock(), "alibi"))
    model.save_pretrained(tmp_path)
    config = model.active_peft_config
    assert isinstance(config, peft.LoraConfig) and config.peft_type == "LORA"
    for copied in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), copy.deepcopy(model).active_peft_config):
        assert copied.to_dict() == config.to_dict()
    read = peft.PeftConfig.from_pretrained(tmp_path)
    assert isinstance(read, peft.LoraConfig) and read.r == 2
    with pytest.raises(ValueError, match="HF_POSENC"):  # its base has no encoding yet
        peft.get_peft_model(stock(), peft.LoraConfig()).add_adapter("other", read)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"posenc_format": 2}, "written by a newer hf_posenc"),
        ({"positional_encoding": [{"name": "alibi", "options": {}, "layers": [0], "phase": 1}]}, "'phase', which is unknown here"),
        ({"positional_encoding": [{"name": "path", "options": {"rank": 1 << 40}, "layers": [0]}]}, "would hold"),
    ],
)
def test_what_an_adapter_says_is_looked_at_first(change, message, stock, tmp_path):
    lora(hf_posenc.patch(stock(), "alibi")).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    base = stock()
    with pytest.raises(ValueError, match=message):
        peft.PeftModel.from_pretrained(base, tmp_path)
    assert not patch_of(base).placements and torch.equal(logits(base), logits(stock()))


@pytest.mark.parametrize("damage", ["none", "shapes"])
def test_parameters_of_another_base_are_refused(damage, stock, tmp_path):
    lora(hf_posenc.patch(stock(), "t5")).save_pretrained(tmp_path)
    kept = {name: value[:-1] for name, value in load_file(tmp_path / PARAMETERS).items()}
    (tmp_path / PARAMETERS).unlink()
    if damage == "shapes":
        save_file(kept, tmp_path / PARAMETERS)
    base = stock()
    with pytest.raises(ValueError, match="are not those of this model"):
        peft.PeftModel.from_pretrained(base, tmp_path)
    assert not patch_of(base).placements and torch.equal(logits(base), logits(stock()))


WITHOUT = """
import sys, copy, torch, peft
from peft import mapping
from transformers import AutoModelForCausalLM
base, *folders = sys.argv[1:]
registries = {name: dict(value) for name, value in vars(mapping).items() if name.startswith("PEFT_TYPE_TO")}
for load in (lambda: peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folders[0]),
             lambda: peft.AutoPeftModelForCausalLM.from_pretrained(folders[0]), lambda: AutoModelForCausalLM.from_pretrained(folders[0])):
    try:
        load()
    except KeyError as error:
        print(error)
import hf_posenc
now = {name: getattr(mapping, name) for name in registries}
print({type(key).__name__ for name, found in now.items() for key in found if found[key] != registries[name].get(key)})
for folder in folders:
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    with torch.no_grad():
        print(model(torch.arange(5, 17)[None]).logits.double().sum().item())
"""


def test_loud_without_the_package_and_right_with_it(folders, stock, tmp_path):
    """In a new process, where PEFT is imported first."""
    models = [lora(hf_posenc.patch(stock(), name)) for name in ("alibi", "shaw")]
    for at, model in enumerate(models):
        model.save_pretrained(tmp_path / str(at))
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT, folders["llama"], *(str(tmp_path / str(at)) for at in range(2))]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    *errors, changed, first, second = run.stdout.splitlines()
    assert errors == [repr(AdapterType.HF_POSENC.value)] * 3 and changed == "{'AdapterType'}"
    sums = [logits(model).double().sum().item() for model in models]
    assert [float(first), float(second)] == pytest.approx(sums, abs=1e-4)
