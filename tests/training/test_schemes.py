"""Positions for training alone: any scheme as a collator, in a Trainer, on a model; what each draws is in the tests below `schemes`."""

import copy
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tiny import options_for, scheme_options_for, tiny_model
from torch.testing import assert_close
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments, default_data_collator

import hf_posenc
from hf_posenc.training import ProgressiveLengths, create_scheme, describe_scheme, list_schemes, scheme, separate_documents
from hf_posenc.training.packing import IGNORED
from hf_posenc.training.schemes import SCHEMES, PositionScheme

LENGTH, TARGET = 9, 40
every_scheme = pytest.mark.parametrize("name", list_schemes())


def rows(count=4, length=LENGTH, seed=0):
    """Sums and turns of a kind, for the schemes that look for such: some labels are left out, some tokens are digits, one is =."""
    ids = torch.randint(3, 60, (count, length), generator=torch.Generator().manual_seed(seed))
    ids[:, length // 2] = 30
    labels = ids.masked_fill(torch.arange(length) < length // 2, IGNORED)
    return [{"input_ids": row, "labels": wanted} for row, wanted in zip(ids.tolist(), labels.tolist(), strict=True)]


def made(name, **more):
    return create_scheme(name, **scheme_options_for(name) | more)


def model_for(name):
    """A model whose encoding goes with the scheme: one that sees absolute positions, and those between whole numbers."""
    return hf_posenc.patch(tiny_model("llama", max_position_embeddings=TARGET), "sinusoidal", layers="all")


def ready(name, **more):
    """The scheme, and a model that it has seen."""
    model = model_for(name)
    return made(name, **more).prepare(model), model


@every_scheme
def test_draws_depend_on_seed_row_and_epoch_and_on_nothing_else(name):
    collator, _ = ready(name)
    drawn = collator(rows(8))["position_ids"]
    one_by_one = torch.cat([collator([row])["position_ids"] for row in reversed(rows(8))]).flip(0)
    assert torch.equal(drawn, one_by_one) and torch.equal(drawn, ready(name)[0](rows(8))["position_ids"])
    assert len({tuple(row.tolist()) for row in drawn}) > 4
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(drawn, collator(rows(8))["position_ids"]) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(drawn, ready(name, seed=1)[0](rows(8))["position_ids"])
    collator.epoch = 1
    assert not torch.equal(drawn, collator(rows(8))["position_ids"])
    kind = torch.long if describe_scheme(name).whole else torch.float32
    assert drawn.dtype == kind and drawn.max() < collator.reach(LENGTH)


class Padding:
    """A collator of someone else's."""

    def __init__(self, side):
        self.side = side

    def __call__(self, rows):
        longest = max(len(row["input_ids"]) for row in rows)

        def pad(row, value):
            missing = [value] * (longest - len(row))
            return row + missing if self.side == "right" else missing + row

        padded = {"input_ids": [pad(row["input_ids"], 0) for row in rows], "labels": [pad(row["labels"], IGNORED) for row in rows]}
        mask = [pad([1] * len(row["input_ids"]), 0) for row in rows]
        return {name: torch.tensor(column) for name, column in (padded | {"attention_mask": mask}).items()}


@pytest.mark.parametrize("side", ["left", "right"])
@every_scheme
def test_padding_of_another_collator_is_no_text(name, side):
    collator, _ = ready(name)
    collator.collator = Padding(side)
    ragged = [rows(1, length, seed)[0] for seed, length in enumerate((9, 6, 11))]
    batch = collator(ragged)
    assert batch["input_ids"].shape == batch["position_ids"].shape == (3, 11)
    for row, positions, mask in zip(ragged, batch["position_ids"], batch["attention_mask"], strict=True):
        collator.collator = None
        assert torch.equal(positions[mask > 0], collator([row])["position_ids"][0])
        assert (mask > 0).sum() == len(row["input_ids"]) and not positions[mask == 0].any()


@every_scheme
@torch.no_grad()
def test_documents_of_a_packed_row_are_placed_and_seen_one_by_one(name):
    """Each at positions of its own, as they would be in a row of its own, though these do not tell documents any more."""
    collator, model = ready(name)
    collator.collator = DataCollatorWithFlattening(separator_id=IGNORED)
    documents = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows(3)]
    batch = collator(documents)
    assert batch["input_ids"].shape == (1, 3 * LENGTH)
    assert batch["attention_mask"][0].tolist() == [2] * LENGTH + [3] * LENGTH + [4] * LENGTH
    whole = model(**{key: batch[key] for key in ("input_ids", "position_ids", "attention_mask")}, use_cache=False).logits
    for part in torch.arange(3 * LENGTH).split(LENGTH):
        alone = {key: batch[key][:, part] for key in ("input_ids", "position_ids", "attention_mask")}
        assert_close(whole[:, part], model(**alone, use_cache=False).logits, atol=2e-5, rtol=2e-4)


def test_documents_that_the_model_would_see_as_one_are_refused():
    packed = [{**row, "position_ids": [0, 1, 2, 3, 0, 1, 2, 3, 4]} for row in rows(1)]
    with pytest.raises(ValueError, match=r"attach\(trainer\), or prepare\(model\), or pack with boundaries=False"):
        made("pose")(packed)
    model = tiny_model("llama", max_position_embeddings=TARGET)
    collator = made("pose").prepare(model)
    with pytest.raises(ValueError, match=r"separate_documents\(model\) before"):
        collator(packed)
    separate_documents(model)
    assert collator.prepare(model)(packed)["attention_mask"].tolist() == [[2] * 4 + [3] * 5]
    one = [{**row, "position_ids": list(range(LENGTH))} for row in rows(1)]
    assert made("pose")(one)["attention_mask"].tolist() == [[1] * LENGTH]


@every_scheme
def test_texts_of_one_token_and_texts_that_are_too_long(name):
    collator, _ = ready(name)
    assert collator([{"input_ids": [5], "labels": [5]}])["position_ids"].shape == (1, 1)
    if collator.target_length is not None:
        with pytest.raises(ValueError, match="41 tokens does not fit into 40 positions"):
            collator(rows(1, 41))
        assert collator(rows(1, 40))["position_ids"].tolist() == [list(range(40))]


def tried(kind, name):
    """A batch of the scheme and a model with the encoding; None where that is refused for what the encoding is, as other tests look at."""
    torch.manual_seed(7)
    model = hf_posenc.patch(tiny_model("llama", max_position_embeddings=12), name, **options_for(name))
    try:
        batch = made(kind).prepare(model)(rows(2))
    except ValueError as error:
        assert any(reason in str(error) for reason in ("no positions", "is not defined", "are not finite", "was asked to reach"))
        return None, None
    return {key: batch[key] for key in ("input_ids", "position_ids", "attention_mask")}, model


@pytest.mark.cover("encoding_kind", "encoding_stages kind", kind=["cape", "pose"])
@torch.no_grad()
def test_logits_are_those_of_the_definition_at_the_drawn_positions(kind, name):
    """Under eager attention, token by token: every row is computed without its later tokens."""
    inputs, model = tried(kind, name)
    if model is None:
        return
    found = model(**inputs, use_cache=False).logits
    model.set_attn_implementation("eager")
    for end in range(1, LENGTH + 1):
        part = {key: column[:, :end] for key, column in inputs.items()}
        assert_close(found[:, end - 1], model(**part, use_cache=False).logits[:, -1], atol=2e-5, rtol=2e-4)


@pytest.mark.cover("encoding_kind")
@torch.no_grad()
def test_skipped_positions_are_those_of_a_long_row_whose_other_tokens_are_hidden(name):
    """The same tokens in a row of all 40 positions, consecutive ones, where a padding mask hides what the draw left out."""
    inputs, model = tried("randomized", name)
    if model is None:
        return
    long = torch.zeros(2, TARGET, dtype=torch.long)
    mask = torch.zeros(2, TARGET, dtype=torch.long).scatter(1, inputs["position_ids"], 1)
    long.scatter_(1, inputs["position_ids"], inputs["input_ids"])
    full = model(long, attention_mask=mask, position_ids=torch.arange(TARGET).expand(2, -1), use_cache=False).logits
    expected = torch.stack([full[row, inputs["position_ids"][row]] for row in range(2)])
    assert_close(model(**inputs, use_cache=False).logits, expected, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("name", ["kerple", "t5", "shaw", "floater"])
def test_a_trial_leaves_a_model_as_it_was_and_an_encoding_that_starts_at_nothing_is_no_reason_to_refuse(name):
    model = hf_posenc.patch(tiny_model("llama", max_position_embeddings=TARGET), name, **options_for(name)).train()
    learned = [parameter for key, parameter in model.named_parameters() if "positional_encoding" in key]
    for parameter in learned:
        parameter.data.zero_()
    before, state = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    made("pose").prepare(model)
    assert learned and all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state()) and all(module.training for module in model.modules())


@torch.no_grad()
def test_what_comes_before_a_jump_is_seen_and_without_the_mask_it_would_not_be():
    model, batch = tiny_model("llama", max_position_embeddings=TARGET), made("pose")(rows(1))
    jump = int(batch["position_ids"][0].diff().argmax()) + 1
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][:, :jump] = 60 - other["input_ids"][:, :jump]
    assert 0 < jump < LENGTH

    def influence(**drop):
        one, two = (model(**{**inputs, **drop}, use_cache=False).logits[:, -1] for inputs in (batch, other))
        return (one - two).abs().max().item()

    assert influence() > 1e-2
    assert influence(attention_mask=None) < 1e-6


# -- a Trainer --------------------------------------------------------------------------------------------------------


def trainer_of(folder, model, data=None, collator=default_data_collator, **settings):
    settings = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "lr_scheduler_type": "constant"} | settings
    arguments = TrainingArguments(str(folder), report_to="none", use_cpu=True, disable_tqdm=True, label_names=["labels"], **settings)
    data = Dataset.from_list(rows(8)) if data is None else data
    return Trainer(model, arguments, train_dataset=data, eval_dataset=data, data_collator=collator)


@every_scheme
def test_training_is_placed_and_evaluation_is_as_it_was(name, tmp_path):
    model = model_for(name)
    plain = trainer_of(tmp_path, copy.deepcopy(model)).evaluate()["eval_loss"]
    trainer = trainer_of(tmp_path, model, eval_strategy="steps", eval_steps=1, save_strategy="no", learning_rate=0.0)
    attached = made(name).attach(trainer)
    batches = list(trainer.get_train_dataloader())
    assert len(batches) == 4 and all(not torch.equal(batch["position_ids"], consecutive(batch)) for batch in batches)
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 2
    if name == "position_coupling":  # where the task is in the positions
        evaluated = next(iter(trainer.get_eval_dataloader()))
        assert torch.equal(evaluated["position_ids"], attached.positions(evaluated["input_ids"]))
    else:
        assert losses == pytest.approx([plain, plain]) and "position_ids" not in next(iter(trainer.get_eval_dataloader()))


def consecutive(batch):
    return torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])


@pytest.mark.parametrize("name", ["cape", "pose"])
def test_trainer_trains_at_the_drawn_positions_and_goes_on_after_an_interruption(name, tmp_path):
    """Each epoch has its own draws; a resumed run sees the rows and draws of one that was never interrupted."""
    whole, seen = train(name, tmp_path / "whole", 9)
    train(name, tmp_path / "cut", 5)
    resumed, again = train(name, tmp_path / "cut", 9, resume_from_checkpoint=True)
    assert [again[step] for step in (5, 6, 7, 8)] == [seen[step] for step in (5, 6, 7, 8)]
    for parameter, value in whole.model.named_parameters():
        assert_close(resumed.model.get_parameter(parameter), value, atol=1e-6, rtol=1e-5)
    by_epoch = [dict(pair for step in range(first, first + 4) for pair in seen[step]) for first in (0, 4)]
    assert by_epoch[0].keys() == by_epoch[1].keys() and by_epoch[0] != by_epoch[1]


def train(name, folder, steps, **resume):
    """The trainer, and by step what the model saw: tokens of a row -> positions."""
    model, seen = tiny_model("llama", max_position_embeddings=TARGET), {}
    trainer = trainer_of(folder, model, max_steps=steps, save_steps=5)
    made(name).attach(trainer)

    def look(module, args, kwargs):
        ids, positions = kwargs["input_ids"].tolist(), kwargs["position_ids"].tolist()
        seen[trainer.state.global_step] = [(tuple(row), tuple(at)) for row, at in zip(ids, positions, strict=True)]

    model.register_forward_pre_hook(look, with_kwargs=True)
    trainer.train(**resume)
    return trainer, seen


def test_rows_that_grow_are_placed_too(tmp_path):
    trainer = trainer_of(tmp_path, tiny_model("llama", max_position_embeddings=TARGET), Dataset.from_list(rows(8, 8)), save_strategy="no")
    ProgressiveLengths({0: 4, 1: 8}).attach(trainer)
    made("pose").attach(trainer)
    seen = []
    trainer.model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True)
    trainer.train()
    assert [tuple(positions.shape) for positions in seen] == [(4, 4), (2, 8)]
    assert all((positions[:, 0] == 0).all() and positions.max() > 8 for positions in seen)


def test_workers_draw_what_the_process_draws(tmp_path):
    here, there = (batches(tmp_path, workers) for workers in (0, 1))
    assert len(here) == 4 and all(map(torch.equal, here, there))


def batches(folder, workers):
    trainer = trainer_of(folder, tiny_model("llama", max_position_embeddings=TARGET), dataloader_num_workers=workers)
    made("pose").attach(trainer)
    return [batch["position_ids"] for batch in trainer.get_train_dataloader()]


REFUSED = {
    "a table": ("llama", "learned", "cape", {}, "places tokens between whole positions, where 'learned' is not defined"),
    "buckets": ("llama", "t5", "cape", {}, "'t5' knows no positions between whole numbers"),
    "no positions": ("llama", "nope", "pose", {}, "'nope' knows no positions"),
    "distances": ("llama", "alibi", "shape", {}, "'alibi' sees only how far they lie apart"),
    "stock distances": ("llama", None, "shape", {}, "the encoding of LlamaForCausalLM sees only how far they lie apart"),
    "no position ids": ("bloom", None, "pose", {}, "BloomForCausalLM takes no position ids"),
    "a short table": ("gpt2", None, "pose", {}, "the model has a table of 12 positions and 40 were asked for"),
    "a table between": ("gpt2", None, "cape", {}, "between whole positions, where the encoding of GPT2LMHeadModel is not defined"),
    "a short scaling": (
        "llama",
        "yarn",
        "pose",
        {"factor": 2.0},
        "asked to reach 24: the scaling of the target must be at work",
    ),
    "no digits": ("llama", None, "position_coupling", {"digits": ()}, "does not know what digits are"),
}


@pytest.mark.parametrize(("family", "encoding", "name", "changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_before_anything_has_changed(family, encoding, name, changes, message, tmp_path):
    model = tiny_model(family)
    if encoding is not None:
        hf_posenc.patch(model, encoding, **options_for(encoding) | {k: v for k, v in changes.items() if k == "factor"})
    trainer = trainer_of(tmp_path, model)
    before = vars(trainer).copy(), list(trainer.callback_handler.callbacks), hf_posenc.inspect(model).fingerprint
    with pytest.raises(ValueError) as error:
        made(name, **{k: v for k, v in changes.items() if k != "factor"}).attach(trainer)
    assert message in str(error.value)
    assert (vars(trainer), list(trainer.callback_handler.callbacks), hf_posenc.inspect(model).fingerprint) == before


def test_settings_under_which_draws_would_be_lost_are_refused(tmp_path):
    trainer = trainer_of(tmp_path, tiny_model("llama"), dataloader_num_workers=1, dataloader_persistent_workers=True)
    with pytest.raises(ValueError, match="dataloader_persistent_workers=False"):
        made("pose").attach(trainer)
    trainer = trainer_of(tmp_path, tiny_model("llama"))
    trainer.is_fsdp_enabled, trainer.args.bf16 = True, True
    with pytest.raises(ValueError, match="would round the positions of cape to half precision"):
        made("cape").attach(trainer)


# -- names ------------------------------------------------------------------------------------------------------------


@every_scheme
def test_a_scheme_says_where_it_is_from_and_what_it_takes(name):
    found = describe_scheme(name)
    assert "arXiv:" in found.documentation and "Differs from" in found.documentation and found.documentation in str(found)
    assert all(f"{option}:" in found.documentation or f"{option}," in found.documentation for option in found.options)
    assert str(made(name)).startswith(name)


def test_the_readme_names_them():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    assert [name for name in list_schemes() if f"`{name}`" not in text] == []


def test_mistakes_in_names_and_options_say_what_there_is():
    for name, options, message in (
        ("poze", {}, "unknown position scheme 'poze'. Did you mean 'pose'"),
        ("pose", {}, "'pose' needs target_length"),
        ("pose", {"target_length": 40, "chunk": 3}, "has no option 'chunk'. Did you mean 'chunks'"),
        ("giraffe", {"chunks": 3}, "It takes no options"),
        ("pose", {"target_length": 40, "chunks": 1}, "at least 2 chunks"),
        ("pose", {"target_length": 4.5}, "target_length must be an integer"),
        ("cape", {"jitter": 0.6}, "jitter must be a finite number"),
        ("cape", {"shift": 0, "jitter": 0, "scale": 1}, "raise one of them"),
        ("shape", {"max_offset": 1}, "max_offset must be an integer of at least 2"),
    ):
        with pytest.raises(ValueError) as error:
            create_scheme(name, **options)
        assert message in str(error.value)


def test_a_scheme_of_ones_own_is_found_by_its_name():
    @scheme("backwards")
    class Backwards(PositionScheme):
        """From the end to the beginning."""

        def draw(self, document, generator):
            return torch.arange(len(document)).flip(0)

    try:
        collator = create_scheme("backwards").prepare(model_for("backwards"))
        assert "backwards" in list_schemes() and collator(rows(1))["position_ids"].tolist() == [list(range(LENGTH))[::-1]]
        assert collator(rows(1))["attention_mask"].tolist() == [[2] * LENGTH]  # one document, though its positions fall
    finally:
        del SCHEMES._entries["backwards"]
