"""Packed blocks, and documents that do not see each other in them."""

import copy
import math
import random
from collections import Counter
from itertools import chain

import pytest
import torch
from datasets import Dataset
from design import FAMILIES
from tiny import options_for, save_tiny, tiny_config, tiny_for, tiny_model
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, default_data_collator

import hf_posenc
from hf_posenc.architectures import ARCHITECTURES
from hf_posenc.compat import CACHE, CHECKPOINTING
from hf_posenc.evaluation import CorpusError
from hf_posenc.training import IGNORED, check_isolation, pack, separate_documents, unpack
from hf_posenc.training.packing import cut_blocks, documents_of, reads_documents, whole_ends

LENGTHS = (4, 14, 6)
"""Of the documents of one block; the second is longer than the native context of the tiny models."""
some_of_all = pytest.mark.cover("encoding_kind family_slot", "arch")


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


def streamed(documents, size, min_length):
    """Full blocks as ProLong's packer makes them, a document at a time: what is left of the last one stays for the next if it is long."""
    blocks, buffer = [], []
    for document in documents:
        buffer = buffer + document
        while len(buffer) >= size:
            blocks.append(buffer[:size])
            buffer = buffer[size:] if len(buffer) - size >= min_length else []
    return blocks


@pytest.mark.parametrize("min_length", [1, 3, 8])
def test_packing_by_a_minimum_length_is_that_of_prolong(min_length):
    """Compared once with `datatools/scripts/pack.py` of its authors too, on 3,000 random texts: the same 30,895 blocks."""
    drawn = random.Random(0)
    for _ in range(50):
        lengths = [drawn.randint(min_length, 30) for _ in range(9)]
        documents = [[100 * at + step for step in range(length)] for at, length in enumerate(lengths)]
        found = list(chain(*whole_ends(documents, 8, min_length)))
        assert [found[at : at + 8] for at in range(0, len(found) // 8 * 8, 8)] == streamed(documents, 8, min_length)


@pytest.mark.parametrize("min_length", [8, 11])
def test_from_the_block_size_on_each_block_is_of_one_document(tokenizer, min_length):
    written = ["a" * 7, "b" * 30, "c" * 10, "d" * 7, "e" * 16]
    blocks = pack(texts(*written), tokenizer, 8, min_length=min_length)
    owners = [{tokenizer.decode(token) for token in row} - {tokenizer.eos_token} for row in blocks["input_ids"]]
    counted = {8: {"a": 1, "b": 3, "c": 1, "d": 1, "e": 2}, 11: {"b": 3, "c": 1, "e": 2}}[min_length]
    assert owners == [{letter} for letter, count in counted.items() for _ in range(count)]
    assert all(positions == list(range(8)) for positions in blocks["position_ids"])
    assert all(labels[1:] == ids[1:] for labels, ids in zip(blocks["labels"], blocks["input_ids"], strict=True))  # no padding


def test_short_and_long_documents_of_a_text_are_divided(tokenizer):
    written = ["a" * 9, "b" * 30, "c" * 10, "d" * 3, "e" * 20]
    assert len(tokens_of(tokenizer, written[2])[0]) == 11
    short = unpack(pack(texts(*written), tokenizer, 8, max_length=10)).tolist()
    long = unpack(pack(texts(*written), tokenizer, 8, min_length=11)).tolist()
    assert short == list(chain(*tokens_of(tokenizer, written[0], written[3])))
    assert Counter(tokenizer.decode(long)) == Counter("b" * 24 + "c" * 8 + "e" * 16)


def test_lengths_that_no_document_has_say_how_long_they_are(tokenizer):
    with pytest.raises(CorpusError, match=r"no document has at least 64 tokens: the longest of 4 has 39, the shortest 2"):
        pack(texts(*DOCUMENTS), tokenizer, 8, min_length=64)
    with pytest.raises(CorpusError, match=r"at least 17 and at most 20 tokens"):
        pack(texts(*DOCUMENTS), tokenizer, 8, min_length=17, max_length=20)


def test_short_documents_fill_long_blocks(tokenizer):
    """A batch of `datasets` is 1,000 documents: one at a time, they would leave half of all blocks empty here."""
    found = pack(texts(*["abcd"] * 3000), tokenizer, 4096)
    assert len(found) == math.ceil(3000 * 5 / 4096)
    assert documents_of(Dataset.from_dict({"input_ids": [[1] * 4, [2] * 6] * 3}), 50) == 10
    assert documents_of(Dataset.from_dict({"input_ids": [[1] * 400]}), 50) == 1


def trainable(family, name=None, **changes):
    """A tiny model in training mode whose dropout is off, so that two passes can be compared."""
    off = {key: 0.0 for key, value in vars(tiny_config(family)).items() if "drop" in key and isinstance(value, float)}
    model = tiny_for(name, family, **off, **changes)
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


@some_of_all
def test_a_packed_block_has_the_loss_and_the_gradients_of_its_documents(arch, name):
    model = trainable(arch, name)
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
        getattr(model, f"{CHECKPOINTING}_enable")()


def positions_of(*lengths):
    return torch.cat([torch.arange(length) for length in lengths])


def packed_batches():
    """What goes with one packed row, and where its tokens are: every way in which collators say that all, or all but padding, is seen."""
    ids, size = torch.tensor([list(chain(*documents()))]), sum(LENGTHS)
    positions, ones = positions_of(*LENGTHS)[None], torch.ones(1, size, dtype=torch.long)
    here = {"input_ids": ids, "position_ids": positions}
    yield "no mask", slice(None), {**here, "use_cache": False}
    yield "no mask, the model's own cache", slice(None), here
    for kind in (torch.long, torch.bool, torch.float32):
        yield f"ones as {kind}", slice(None), {**here, "attention_mask": ones.to(kind), "use_cache": False}
    yield "ones, the model's own cache", slice(None), {**here, "attention_mask": ones}
    numbers = torch.cat([torch.full((length,), 2 + n) for n, length in enumerate(LENGTHS)])[None]
    yield "numbers", slice(None), {**here, "attention_mask": numbers, "use_cache": False}
    there = {"input_ids": F.pad(ids, (3, 2)), "position_ids": F.pad(positions, (3, 2)), "attention_mask": F.pad(numbers, (3, 2))}
    yield "numbers, padding", slice(3, 3 + size), there
    for side, pad in (("right", (0, 3)), ("left", (3, 0))):  # with all positions that padding is given anywhere
        for filler in (0, 1):
            padded = {"input_ids": F.pad(ids, pad), "attention_mask": F.pad(ones, pad), "position_ids": F.pad(positions, pad, value=filler)}
            yield f"padding on the {side} at {filler}", slice(pad[0], pad[0] + size), padded
    again = {name: column.expand(2, -1) for name, column in here.items()}
    yield "two rows", slice(None), {**again, "position_ids": positions, "attention_mask": ones.expand(2, -1)}


@some_of_all
@torch.no_grad()
def test_a_mask_beside_positions_that_restart_does_not_undo_packing(arch, name):
    model = trainable(arch, name).eval()
    alone = torch.cat([model(torch.tensor([document]), use_cache=False).logits for document in documents()], 1)
    for what, tokens, batch in packed_batches():
        for row in model(**batch).logits[:, tokens]:
            assert_close(row, alone[0], atol=2e-5, rtol=2e-4, msg=lambda m, w=what: f"{w}: {m}")


@pytest.mark.parametrize("name", [None, "alibi", "rope", "shaw"])
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_every_choice_is_a_row_of_documents(name, masked):
    """GPT-2 takes [batch, choices, tokens] and makes one batch of it."""
    model = trainable("gpt2", name).eval()
    separate_documents(model)
    ids, positions = torch.randint(3, 60, (2, 3, 9)), positions_of(4, 5).expand(6, -1)
    alone = torch.cat([model(part, use_cache=False).logits for part in ids.flatten(0, 1).split((4, 5), 1)], 1)
    mask = {"attention_mask": torch.ones_like(ids)} if masked else {}
    found = model.transformer(ids, position_ids=positions if name is None else positions.unflatten(0, (2, 3)), **mask)[0]
    assert_close(model.lm_head(found).flatten(0, 1), alone, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize(("family", "name"), [("llama", None), ("llama", "alibi"), ("gpt2", "rope"), ("opt", None), ("gemma2", "kerple")])
@torch.no_grad()
def test_documents_that_a_mask_numbers_may_lie_anywhere(family, name):
    """Positions that go on from one document to the next, that are the same, that fall within a document, or lie between whole numbers."""
    model, ids = trainable(family, name, max_position_embeddings=40).eval(), torch.tensor([[5, 9, 7, 3, 8, 4, 6]])
    numbers, one = torch.tensor([[2, 2, 2, 3, 3, 3, 3]]), 1 if name is None else 2  # a stock model does not look at positions beside a mask
    for places in ([4, 5, 6, 7, 8, 9, 10], [1, 2, 3, 1, 2, 3, 4], [3, 2, 1, 1, 4, 3, 2], [0.5, 1.25, 3, 0.2, 2.2, 2.4, 3.1]):
        if family == "opt" and isinstance(places[0], float):
            continue  # it has a table
        pos = torch.tensor([places])
        separate = ((ids[:, part], pos[:, part]) for part in (slice(0, 3), slice(3, 7)))
        alone = torch.cat([model(x, position_ids=p, attention_mask=torch.full_like(x, one)).logits for x, p in separate], 1)
        assert reads_documents(model) == (name is not None)
        handle = separate_documents(model)
        assert reads_documents(model)
        assert_close(model(ids, position_ids=pos, attention_mask=numbers).logits, alone, atol=2e-5, rtol=2e-4)
        handle.remove()


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("name", ["alibi", "yarn", "rerope"])
@torch.no_grad()
def test_every_backend_keeps_documents_apart(name, backend):
    model = trainable("llama", name).eval()
    model.set_attn_implementation(backend)
    with torch.compiler.set_stance("force_eager"):
        check_isolation(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alibi", "yarn"])
@torch.no_grad()
def test_compiled_too_without_a_look_at_the_values(name):
    model = trainable("llama", name).eval()
    kinds = ("no mask", "ones as torch.int64", "numbers", "padding on the left at 1")
    for what, tokens, batch in (b for b in packed_batches() if b[0] in kinds):
        expected = model(**batch).logits[:, tokens]
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert_close(compiled(**batch).logits[:, tokens], expected, atol=2e-5, rtol=2e-4, msg=lambda m, w=what: f"{w}: {m}")


@pytest.mark.parametrize("name", [None, "alibi", "yarn", "rerope"])
@torch.no_grad()
def test_positions_that_do_not_restart_are_one_document(name):
    """Bit for bit what happens without the hook: padding, skipped positions beside a mask, and a prompt that goes on from a cache.

    After a prompt padded on the right, `generate` goes on from the position of the padding.
    """
    model, ids = trainable("llama", name).eval(), torch.randint(3, 60, (2, 10))
    ones, left = torch.ones_like(ids), torch.ones_like(ids).index_fill(1, torch.arange(3), 0)
    within, generated = ones.index_fill(1, torch.arange(5, 7), 0), torch.tensor([[0, 1, 2, 3, 4, 0, 0, 1, 2, 3]])
    calls = [
        {"attention_mask": left, "position_ids": (left.cumsum(-1) - 1).masked_fill(left == 0, 1)},
        {"attention_mask": left.flip(1), "position_ids": (left.flip(1).cumsum(-1) - 1).masked_fill(left.flip(1) == 0, 0)},
        {"attention_mask": ones, "position_ids": torch.arange(10)[None] + 5 * (torch.arange(10) > 4)},
        {"attention_mask": ones, "position_ids": torch.arange(10).expand(2, -1) // 2 + 1},
        {"attention_mask": within, "position_ids": generated},
    ]
    seen = watch_masks(model)
    handle = separate_documents(model)
    del seen[:]
    for call in calls:
        model(ids, **call)
        assert seen.pop() is call["attention_mask"]
    cache = model(ids[:, :6])[CACHE]
    mask = torch.ones(2, 10, dtype=torch.long)
    model(ids[:, 6:], attention_mask=mask, position_ids=torch.arange(4)[None], **{CACHE: cache})
    assert seen.pop() is mask
    handle.remove()


@pytest.mark.parametrize("name", [None, "alibi", "yarn"])
@torch.no_grad()
def test_a_jump_ahead_ends_a_document_where_transformers_has_it_so(name):
    """Without a mask and without a cache; a restart elsewhere in the row changes nothing about it."""
    model, ids = trainable("llama", name).eval(), torch.randint(3, 60, (1, 10))
    separate_documents(model)
    positions = torch.tensor([[0, 1, 2, 6, 7, 8, 0, 1, 2, 3]])
    change = ids.index_fill(1, torch.tensor([0]), 60)
    mask = {"attention_mask": torch.ones_like(ids)}
    for given, ends in (
        ({"use_cache": False}, True),
        ({}, False),
        ({"use_cache": True}, False),
        (mask, False),
        ({**mask, "use_cache": False}, False),
    ):
        one, other = (model(x, position_ids=positions, **given).logits for x in (ids, change))
        assert torch.equal(one[:, 3:6], other[:, 3:6]) == ends, given
        assert torch.equal(one[:, 6:], other[:, 6:]), given


@pytest.mark.parametrize("name", ["alibi", "yarn"])
def test_positions_without_values_are_not_looked_at(name):
    model, stock = trainable("llama", name).to("meta"), tiny_model("llama").to("meta")
    ids, positions = torch.tensor([list(chain(*documents()))]).to("meta"), positions_of(*LENGTHS)[None].to("meta")
    try:
        stock(ids, position_ids=positions)
    except RuntimeError as error:
        pytest.skip(f"nor does the stock model run there: {error}")
    assert model(ids, position_ids=positions, use_cache=True).logits.shape == (1, sum(LENGTHS), 61)


def watch_masks(model):
    """A list that gets the mask that the decoder itself is called with."""
    seen = []
    decoder = model.get_decoder()
    forward = decoder.forward

    def noting(*args, **kwargs):
        seen.append(kwargs.get("attention_mask"))
        return forward(*args, **kwargs)

    decoder.forward = noting
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_the_check_sees_what_leaks(family):
    """Stock models: with a mask of ones all leak, without one those that `packs` denies."""
    model = tiny_model(family).train()
    leaky = "an attention mask of ones" if ARCHITECTURES[family].packs else "no attention mask"
    with pytest.raises(ValueError, match=f"with {leaky}, exchanging document [12] of a row changes the logits of document [23] by"):
        check_isolation(model)
    before = model.eval()(torch.arange(3, 10)[None]).logits
    handle = separate_documents(model)
    twin = copy.deepcopy(model)
    check_isolation(model), check_isolation(twin)
    assert torch.equal(model(torch.arange(3, 10)[None]).logits, before)
    handle.remove()
    check_isolation(twin)
    with pytest.raises(ValueError, match="packed documents see each other"):
        check_isolation(model)


def test_the_check_leaves_everything_as_it_was():
    model = tiny_model("gpt2", resid_pdrop=0.5).train()
    model.transformer.h[0].eval()
    model(torch.arange(3, 10)[None], labels=torch.arange(3, 10)[None]).loss.backward()

    def state():
        tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters()), torch.get_rng_state()]
        return [tensor.clone() for tensor in tensors], [module.training for module in model.modules()]

    before, modes = state()
    with pytest.raises(ValueError):
        check_isolation(model)
    separate_documents(model)
    after, modes_after = state()
    assert all(map(torch.equal, before, after)) and modes == modes_after


def test_the_check_says_that_weights_are_no_numbers():
    model = tiny_model("llama")
    model.model.norm.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="logits that are not finite"):
        check_isolation(model)


@pytest.mark.parametrize("family", [family for family in FAMILIES if not ARCHITECTURES[family].packs])
def test_a_patch_after_the_masks_leaves_documents_apart(family):
    """The callback that anneals an option patches a model that is in training already."""
    model = trainable(family)
    separate_documents(model)
    hf_posenc.patch(model, "alibi", layers="all")
    loss, _ = loss_alone(model)
    assert model(**default_data_collator(list(block())), use_cache=False).loss.item() == pytest.approx(loss, rel=1e-5)
    hf_posenc.unpatch(model)
    check_isolation(model)


def test_a_model_that_cannot_keep_documents_apart_is_refused_and_left_as_it_was():
    model = tiny_model("llama")
    model.get_decoder().register_forward_pre_hook(drop_positions, with_kwargs=True)
    hooks = list(model.get_decoder()._forward_pre_hooks)
    with pytest.raises(ValueError, match="pack without boundaries"):
        separate_documents(model)
    assert list(model.get_decoder()._forward_pre_hooks) == hooks


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_model_without_a_head_is_tried_too_and_one_that_judges_whole_rows_is_not(family):
    backbone = AutoModel.from_config(tiny_config(family))
    with pytest.raises(ValueError, match="packed documents see each other"):
        check_isolation(backbone)
    separate_documents(backbone)
    judge = AutoModelForSequenceClassification.from_config(tiny_config(family))
    with pytest.raises(ValueError, match="says nothing of each token"):
        separate_documents(judge)
    assert not any(module._forward_pre_hooks for module in judge.modules())


def drop_positions(decoder, args, kwargs):
    return args, {**kwargs, "position_ids": None, "attention_mask": torch.ones_like(kwargs["input_ids"])}


@pytest.mark.parametrize(
    ("family", "name", "checkpointing"),
    [
        ("llama", "alibi", False),
        ("llama", "alibi", True),
        ("llama", None, False),
        ("gpt2", "rope", True),
        ("opt", "alibi", False),
        ("gpt_oss", None, True),
    ],
)
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
        **{CHECKPOINTING: checkpointing},
        use_cpu=True,
        label_names=["labels"],
    )
    trainer = Trainer(model, settings, train_dataset=block(), data_collator=default_data_collator)
    assert trainer.train().training_loss == pytest.approx(expected, rel=1e-5)
