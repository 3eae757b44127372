"""Packed blocks, and documents that do not see each other in them."""

import copy
from itertools import chain

import pytest
import torch
from datasets import Dataset
from tiny import options_for, save_tiny, tiny_config, tiny_model
from torch.testing import assert_close
from transformers import AutoTokenizer, Trainer, TrainingArguments, default_data_collator

import hf_posenc
from hf_posenc.architectures import ARCHITECTURES
from hf_posenc.evaluation import CorpusError
from hf_posenc.training import IGNORED, keeps_documents_apart, pack, separate_documents, unpack
from hf_posenc.training.packing import cut_blocks

LENGTHS = (4, 14, 6)
"""Of the documents of one block; the second is longer than the native context of the tiny models."""
EVERY_ENCODING = [(family, name) for family in ("llama", "gpt2") for name in hf_posenc.list_encodings()]
EVERY_FAMILY = [(family, name) for family in ARCHITECTURES for name in ("alibi", "rope")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    tokenizer = AutoTokenizer.from_pretrained(save_tiny(tmp_path_factory.mktemp("model")))
    tokenizer.eos_token = tokenizer.bos_token
    return tokenizer


def texts(*documents):
    return Dataset.from_dict({"text": list(documents)})


def tokens_of(tokenizer, *documents):
    return [tokenizer(document, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for document in documents]


DOCUMENTS = ("first document", "2nd", "the third one is longer than one block", "4")


@pytest.mark.parametrize("boundaries", [False, True])
def test_packing_keeps_every_token_and_ends_every_document(tokenizer, boundaries):
    blocks = pack(texts(DOCUMENTS[0], "", " ", *DOCUMENTS[1:]), tokenizer, 8, boundaries=boundaries)
    expected = list(chain(*tokens_of(tokenizer, *DOCUMENTS)))
    assert len(expected) % 8
    assert unpack(blocks).tolist() == expected
    assert all(len(row) == 8 for name in blocks.column_names for row in blocks[name])
    inputs = torch.tensor(blocks["input_ids"]).flatten().tolist()
    assert inputs[: len(expected)] == expected and set(inputs[len(expected) :]) == {tokenizer.eos_token_id}


def test_without_boundaries_every_token_is_predicted(tokenizer):
    blocks = pack(texts(*DOCUMENTS), tokenizer, 8, boundaries=False)
    expected = list(chain(*tokens_of(tokenizer, *DOCUMENTS)))
    labels = torch.tensor(blocks["labels"]).flatten()
    assert labels[: len(expected)].tolist() == expected and (labels[len(expected) :] == IGNORED).all()
    assert "position_ids" not in blocks.column_names


def test_positions_and_labels_begin_again_with_each_document_and_each_block(tokenizer):
    blocks = pack(texts(*DOCUMENTS), tokenizer, 8)
    positions, labels = [], []
    for document in tokens_of(tokenizer, *DOCUMENTS):  # token by token
        for at, token in enumerate(document):
            begins = at == 0 or len(positions) % 8 == 0
            positions.append(0 if begins else positions[-1] + 1)
            labels.append(IGNORED if begins else token)
    padding = -len(positions) % 8
    found = {name: torch.tensor(blocks[name]).flatten().tolist() for name in blocks.column_names}
    assert found["labels"] == labels + padding * [IGNORED]
    assert found["position_ids"] == positions + [positions[-1] + 1 + n for n in range(padding)]


def test_one_token_documents_are_told_from_padding():
    for documents in ([[5], [6], [7]], [[5, 6, 7], [8]], [[5, 6, 7], [8], []], [[], [5, 6, 7, 8, 9], [1]]):
        blocks = Dataset.from_dict(cut_blocks(documents, 4, padding=1, boundaries=True))
        assert unpack(blocks).tolist() == list(chain(*documents))


def test_a_text_shorter_than_a_block_says_what_is_missing(tokenizer):
    with pytest.raises(CorpusError, match=r"6 tokens, fewer than one block of 8"):
        pack(texts("short"), tokenizer, 8)


def trainable(family, name=None, **changes):
    """A tiny model in training mode whose dropout is off, so that two passes can be compared."""
    off = {key: 0.0 for key, value in vars(tiny_config(family)).items() if "drop" in key and isinstance(value, float)}
    model = tiny_model(family, **off, **changes)
    torch.manual_seed(7)
    return (hf_posenc.patch(model, name, layers="all", **options_for(name)) if name else model).train()


def documents():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 60, (length,), generator=generator).tolist() for length in LENGTHS]


def block():
    return Dataset.from_dict(cut_blocks(documents(), sum(LENGTHS), padding=0, boundaries=True))


def loss_alone(model):
    """Mean nats over the predictions of the documents, each in a pass of its own, and the gradients."""
    model.zero_grad()
    total, count = 0.0, 0
    for document in documents():
        ids = torch.tensor([document])
        logits = model(input_ids=ids, use_cache=False).logits.float()
        total -= logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).sum()
        count += len(document) - 1
    (total / count).backward()
    return (total / count).item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("family", "name"), [*EVERY_ENCODING, *EVERY_FAMILY])
def test_a_packed_block_has_the_loss_and_the_gradients_of_its_documents(family, name):
    model = trainable(family, name)
    assert (separate_documents(model) is None) == ARCHITECTURES[family].packs
    loss, gradients = loss_alone(model)
    for _ in range(2):
        model.zero_grad()
        packed = model(**default_data_collator(list(block())), use_cache=False).loss
        packed.backward()
        assert packed.item() == pytest.approx(loss, rel=1e-5)
        found = {parameter: p.grad for parameter, p in model.named_parameters() if p.grad is not None}
        assert found.keys() == gradients.keys()
        scale = max(gradient.abs().max().item() for gradient in gradients.values())
        for parameter, gradient in gradients.items():
            assert_close(found[parameter], gradient, atol=2e-5 * scale, rtol=2e-3, msg=lambda m, p=parameter: f"{p}: {m}")
        model.activation_checkpointing_enable()


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_the_probe_sees_which_families_keep_documents_apart(family):
    model = tiny_model(family)
    assert keeps_documents_apart(model) == ARCHITECTURES[family].packs
    before = model(torch.arange(3, 10)[None]).logits
    handle = separate_documents(model)
    twin = copy.deepcopy(model)
    assert keeps_documents_apart(model) and keeps_documents_apart(twin)
    assert torch.equal(model(torch.arange(3, 10)[None]).logits, before)
    if handle is not None:
        handle.remove()
        assert not keeps_documents_apart(model) and keeps_documents_apart(twin)


@pytest.mark.parametrize("family", [family for family in ARCHITECTURES if not ARCHITECTURES[family].packs])
def test_a_patch_after_the_masks_leaves_documents_apart(family):
    """The callback that anneals an option patches a model that is in training already."""
    model = trainable(family)
    separate_documents(model)
    hf_posenc.patch(model, "alibi", layers="all")
    loss, _ = loss_alone(model)
    assert model(**default_data_collator(list(block())), use_cache=False).loss.item() == pytest.approx(loss, rel=1e-5)
    hf_posenc.unpatch(model)
    assert keeps_documents_apart(model)


def test_a_model_that_cannot_keep_documents_apart_is_refused_and_left_as_it_was():
    model = tiny_model("llama")
    model.get_decoder().register_forward_pre_hook(drop_positions, with_kwargs=True)
    hooks = list(model.get_decoder()._forward_pre_hooks)
    with pytest.raises(ValueError, match="pack without boundaries"):
        separate_documents(model)
    assert list(model.get_decoder()._forward_pre_hooks) == hooks


def drop_positions(decoder, args, kwargs):
    return args, {**kwargs, "position_ids": None, "attention_mask": torch.ones_like(kwargs["input_ids"])}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("family", "name"), [("llama", "alibi"), ("llama", None), ("gpt2", "rope"), ("opt", "alibi"), ("gpt_oss", None)])
def test_trainer_keeps_the_documents_of_a_block_apart(family, name, checkpointing, tmp_path):
    model = trainable(family, name, max_position_embeddings=16)
    model.config.use_cache = True  # as models come; Trainer has its own setting
    expected, _ = loss_alone(model)
    separate_documents(model)
    settings = TrainingArguments(
        str(tmp_path),
        max_steps=1,
        learning_rate=0.0,
        report_to="none",
        activation_checkpointing=checkpointing,
        use_cpu=True,
        label_names=["labels"],
    )
    trainer = Trainer(model, settings, train_dataset=block(), data_collator=default_data_collator)
    assert trainer.train().training_loss == pytest.approx(expected, rel=1e-5)
