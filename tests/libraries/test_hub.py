"""What model cards say of a patched model: tags, which transformers gives to the hub, and PEFT writes down."""

import peft
import pytest
from huggingface_hub import ModelCard
from tiny import save_tiny
from transformers import AutoModelForCausalLM

import hf_posenc


@pytest.fixture
def model(tmp_path):
    return AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "base"))


def test_the_card_of_peft(model, tmp_path):
    peft.get_peft_model(hf_posenc.patch(model, "t5"), peft.LoraConfig()).save_pretrained(tmp_path)
    assert {"hf_posenc", "t5"} <= set(ModelCard.load(tmp_path / "README.md").data.tags)


def test_tags_come_and_go_with_the_patch(model):
    """Those of the user stay; a stock checkpoint needs none."""
    model.add_model_tags("mine")
    for name in ("alibi", "t5"):
        assert hf_posenc.patch(model, name).model_tags == ["mine", "hf_posenc", name]
    model.add_model_tags("late")
    hf_posenc.patch(model, {"alibi": {"layers": [0]}, "nope": {}})
    assert model.model_tags[:3] == ["mine", "late", "hf_posenc"] and set(model.model_tags[3:]) == {"alibi", "nope"}
    assert hf_posenc.patch(model, "yarn", factor=2.0).model_tags == ["mine", "late"]
    assert hf_posenc.unpatch(model).model_tags == ["mine", "late"]


def test_without_tags_of_the_user_nothing_is_left(model):
    before = set(vars(model))
    hf_posenc.unpatch(hf_posenc.patch(model, "alibi"))
    assert set(vars(model)) == before and model.model_tags is None and type(model).model_tags is None
