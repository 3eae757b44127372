"""Models whose code lies beside their weights: served by structure where they follow the conventions, refused where they do not."""

import json

import pytest
import torch
from custom_code import TURN, write
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

import hf_posenc
from hf_posenc.patching import Request, apply, patch_of

IDS = torch.randint(3, 60, (2, 17), generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=["halves", "pairs"])
def folder(request, tmp_path):
    return made(tmp_path, request.param)


def made(folder, turn):
    """A checkpoint with random weights."""
    (folder / "config.json").write_text(json.dumps(write(folder, turn)))
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and name != "head.weight":
                parameter.mul_(8)
    model.save_pretrained(folder)
    return folder


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


@torch.no_grad()
def test_its_own_rotation_acts_in_the_attention_function_as_at_home(folder):
    model = loaded(folder)
    ids = IDS[:, :12]
    stock, keys = model(ids).logits, list(model.state_dict())
    record = patch_of(model)
    assert record.architecture.interleaved == ("1::2" in (folder / "modeling_own.py").read_text())
    apply(record, Request("rope", {}, (0, 1)), native_slot=False)
    assert_close(model(ids).logits, stock, atol=1e-4, rtol=1e-4)
    hf_posenc.patch(model, "rerope", window=30)
    assert_close(model(ids).logits, stock, atol=1e-4, rtol=1e-4)
    hf_posenc.patch(model, "rerope", window=3)
    assert (model(ids).logits - stock).abs().max() > 0.01
    hf_posenc.unpatch(model)
    assert torch.equal(model(ids).logits, stock) and list(model.state_dict()) == keys


@pytest.mark.parametrize(("name", "options"), [("alibi", {}), ("yarn", {"factor": 4.0}), ("t5", {})])
@torch.no_grad()
def test_decodes_as_it_evaluates_and_loads_again(folder, tmp_path, name, options):
    model = hf_posenc.patch(loaded(folder), name, **options)
    full = model(IDS, use_cache=False).logits
    first = model(IDS[:, :9], use_cache=True)
    rest = model(IDS[:, 9:], past_key_values=first.past_key_values, use_cache=True)
    assert_close(torch.cat((first.logits, rest.logits), 1), full, atol=1e-4, rtol=1e-4)
    assert (full - loaded(folder)(IDS).logits).abs().max() > 0.01
    saved = tmp_path / f"{tmp_path.name}_saved"  # transformers tells code apart by the name of the folder it lies in
    model.save_pretrained(saved)
    again = loaded(saved)
    assert_close(again(IDS, use_cache=False).logits, full)
    assert [e.name for e in hf_posenc.inspect(again).encodings] == ([] if name == "yarn" else [name])


def test_what_turns_in_its_own_way_is_refused(tmp_path):
    assert "backwards" in TURN
    model = loaded(made(tmp_path, "backwards"))
    stock = model(IDS).logits
    with pytest.raises(ValueError, match=r"'own_decoder' is not supported, and its structure .* does not turn its queries and keys"):
        hf_posenc.patch(model, "alibi")
    assert torch.equal(model(IDS).logits, stock)


def test_our_checkpoint_of_custom_code_asks_for_trust(folder, tmp_path):
    hf_posenc.patch(loaded(folder), "alibi").save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
