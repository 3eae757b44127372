"""Bases that are quantised: by torchao, bitsandbytes, or in a GGUF."""

import pytest
import torch
from engines import model_for, save_base
from tiny import options_for, save_tiny, tiny_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

import hf_posenc
from hf_posenc.exporting import gguf_file

NAMES = ["alibi", "yarn", "rerope", "shaw", "pia"]
IDS = torch.arange(5, 45)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


def patched(model, name):
    torch.manual_seed(1)
    return hf_posenc.patch(model, name, **options_for(name))


@torch.no_grad()
def logits(model):
    return model(IDS).logits


@pytest.mark.slow
@pytest.mark.parametrize("order", ["patched after", "patched before"])
def test_torchao_int8(order, folder, tmp_path):
    """As a model with the weights that are left of the quantisation."""
    quantization = pytest.importorskip("torchao.quantization")
    for name in NAMES:
        if order == "patched before":
            model = patched(AutoModelForCausalLM.from_pretrained(folder), name)
            quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        else:
            config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
            model = patched(AutoModelForCausalLM.from_pretrained(folder, quantization_config=config), name)
        plain = patched(AutoModelForCausalLM.from_pretrained(folder), name)
        rounded = [key for key, value in model.named_parameters() if type(value) is not torch.nn.Parameter]
        assert "model.layers.0.self_attn.q_proj.weight" in rounded and not any("positional" in key for key in rounded)
        with torch.no_grad():
            for key in rounded:
                plain.get_parameter(key).copy_(model.get_parameter(key).dequantize())
        assert_close(logits(model), logits(plain), atol=1e-3, rtol=1e-3)
        if order == "patched after":
            model.save_pretrained(tmp_path / name)
            again = AutoModelForCausalLM.from_pretrained(tmp_path / name)
            assert torch.equal(logits(again), logits(model))
            assert type(again.model.layers[0].self_attn.q_proj.weight) is type(model.model.layers[0].self_attn.q_proj.weight)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_bitsandbytes(bits, tmp_path):
    """ReRoPE within its window has the numbers of the quantised model itself; all load again as they were saved."""
    pytest.importorskip("bitsandbytes")
    folder = tmp_path / "base"
    wide = tiny_model("llama", hidden_size=128, head_dim=32, intermediate_size=128, max_position_embeddings=64)  # for its kernels
    wide.save_pretrained(folder)

    config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, bnb_4bit_compute_dtype=torch.float32)

    def load():
        return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32)

    stock = logits(load())
    assert (stock - logits(AutoModelForCausalLM.from_pretrained(folder))).std() > 0.01 * stock.std()
    assert (stock - logits(hf_posenc.patch(load(), "rerope", window=64))).std() < 0.01 * stock.std()
    for name in NAMES:
        model = patched(load(), name)
        assert (stock - logits(model)).std() > 0.1 * stock.std()
        model.save_pretrained(tmp_path / name)
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / name)), logits(model))


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    pytest.importorskip("gguf")
    folder, model = tmp_path_factory.mktemp("gguf"), model_for()
    reader = gguf_file.open_gguf(save_base(model, folder / "zeros.gguf"))
    gguf_file.write_gguf(reader, hf_posenc.export(model, "llama.cpp"), folder / "model.gguf", model.state_dict())
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_model_loaded_from_gguf(name, gguf, tmp_path):
    """Transformers does not save it while it counts as quantised, which its weights are no longer."""
    model = patched(AutoModelForCausalLM.from_pretrained(gguf, gguf_file="model.gguf"), name)
    assert_close(logits(model), logits(patched(model_for(), name)))
    with pytest.raises(ValueError, match="quantized with gguf and is not serializable"):
        model.save_pretrained(tmp_path)
    model.hf_quantizer.remove_quantization_config(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))
