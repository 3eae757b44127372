"""Options and row lengths that change while a real Trainer trains."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny import tiny_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments, default_data_collator

import hf_posenc
from hf_posenc.patching import patch_of
from hf_posenc.training import Anneal, LengthEvaluation, ProgressiveLengths, Stages
from hf_posenc.training.packing import cut_blocks

LENGTH = 24


def blocks(count=8, seed=0):
    """Blocks of packed documents of 1 to 40 tokens."""
    generator = torch.Generator().manual_seed(seed)
    documents, missing = [], count * LENGTH
    while missing:
        size = min(missing, int(torch.randint(1, 41, (), generator=generator)))
        documents.append(torch.randint(3, 60, (size,), generator=generator).tolist())
        missing -= size
    return Dataset.from_dict(cut_blocks(documents, LENGTH, padding=0, boundaries=True))


def trainer_of(folder, model=None, **more):
    settings = {"max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "use_cpu": True}
    settings |= {"report_to": "none", "logging_steps": 1, "disable_tqdm": True, "save_strategy": "no", "label_names": ["labels"]}
    model = tiny_model("llama") if model is None else model
    return Trainer(
        model,
        TrainingArguments(str(folder), **(settings | more)),
        train_dataset=blocks(),
        eval_dataset=blocks(3, seed=1),
        data_collator=default_data_collator,
    )


class Live(TrainerCallback):
    """What the model really computes with, asked at the beginning of each step and at each evaluation."""

    def __init__(self, read):
        self.read, self.steps, self.evaluations = read, {}, {}

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.steps[state.global_step] = self.read(model)

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        self.evaluations[state.global_step] = self.read(model)


def inverse_frequency(model):
    """The last inverse frequency of the rotary module, as the layers will be given it."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    cos, _ = base.get_decoder().rotary_emb(torch.zeros(1, 1, 64), torch.tensor([[1]]))
    return torch.arccos(cos.double()[0, 0, 7]).item()


def frequency_for(theta, width=16):
    return theta ** (-(width - 2) / width)


def theta_of(model):
    return inverse_frequency(model) ** (-16 / 14)


@pytest.mark.parametrize(("peft", "geometric"), [(False, True), (True, False)])
def test_rope_theta_moves_as_the_model_trains(peft, geometric, tmp_path):
    model = tiny_model("llama", max_position_embeddings=LENGTH)
    if peft:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    trainer, live = trainer_of(tmp_path, model, eval_strategy="steps", eval_steps=3), Live(theta_of)
    anneal = Anneal("rope", "theta", 4.0, 64.0, steps=4, geometric=geometric).attach(trainer)
    trainer.add_callback(live)
    assert theta_of(model) == pytest.approx(4.0, rel=1e-3)
    optimizer_before = {id(p) for p in model.parameters()}
    trainer.train()
    expected = [4.0, 8.0, 16.0, 32.0, 64.0, 64.0] if geometric else [4.0, 19.0, 34.0, 49.0, 64.0, 64.0]
    assert list(live.steps.values()) == pytest.approx(expected, rel=1e-3)
    assert live.evaluations == {3: pytest.approx(expected[3], rel=1e-3), 6: pytest.approx(64.0, rel=1e-3)}
    assert theta_of(trainer.model) == pytest.approx(64.0, rel=1e-3)
    logged = {entry["step"]: entry["rope.theta"] for entry in trainer.state.log_history if "rope.theta" in entry}
    assert logged == {step: pytest.approx(expected[step]) for step in range(5)}
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held <= {id(p) for p in trainer.model.parameters()} == optimizer_before
    assert anneal.live == 64.0


def test_every_so_many_steps_and_whole_numbers(tmp_path):
    few = Anneal("yarn", "factor", 1, 4, steps=6, every=2)
    assert [few.value(step) for step in range(8)] == [1, 1, 2, 2, 3, 3, 4, 4]
    window = Anneal("rerope", "window", 4, 14, steps=4)
    assert [window.value(step) for step in range(5)] == [4, round(6.5), 9, round(11.5), 14]
    trainer = trainer_of(tmp_path)
    window.attach(trainer)
    trainer.train()
    (placement,) = patch_of(trainer.model).placements
    assert placement.request.options == {"window": 14}


def test_stages_of_theta_and_length_begin_with_the_same_steps(tmp_path):
    """As EasyContext and ProLong raise them: every step sees the theta and the length of its stage, and as many tokens as the others."""
    trainer, live, shapes = trainer_of(tmp_path), Live(theta_of), []
    ProgressiveLengths({0: 6, 2: 12, 5: 24}).attach(trainer)
    Stages("rope", "theta", {5: 64.0, 0: 4.0, 2: 16.0}).attach(trainer)
    trainer.add_callback(live)
    trainer.model.register_forward_pre_hook(lambda module, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True)
    trainer.train()
    assert list(live.steps.values()) == pytest.approx([4, 4, 16, 16, 16, 64], rel=1e-3)
    assert shapes == [(8, 6), (8, 6), (4, 12), (4, 12), (4, 12), (2, 24)]
    assert theta_of(trainer.model) == pytest.approx(64, rel=1e-3)
    assert [entry["rope.theta"] for entry in trainer.state.log_history if "rope.theta" in entry] == [4.0, 16.0, 64.0]
    window = Stages("rerope", "window", {0: 4.0, 3: 14.0})  # as a command line reads them
    assert [window.value(step) for step in (0, 2, 3, 9)] == [4, 4, 14, 14] and isinstance(window.value(9), int)


@pytest.mark.parametrize("schedule", [{}, {0: 4.0}, {1: 4.0, 2: 5.0}])
def test_stages_begin_at_the_first_step_and_are_several(schedule):
    with pytest.raises(ValueError, match="begin at step 0 and are at least two"):
        Stages("rope", "theta", schedule)


def test_a_resumed_run_goes_on_at_the_value_of_its_checkpoint(tmp_path):
    """Bit for bit: the same weights as without the interruption, although the new process starts from the first value."""

    def run(folder, steps, **resume):
        trainer, live = trainer_of(folder, max_steps=steps, save_strategy="steps", save_steps=3), Live(theta_of)
        Anneal("rope", "theta", 4.0, 64.0, steps=5).attach(trainer)
        trainer.add_callback(live)
        trainer.train(**resume)
        return trainer.model, live.steps

    whole, values = run(tmp_path / "whole", 6)
    run(tmp_path / "cut", 3)
    checkpoint = AutoModelForCausalLM.from_pretrained(tmp_path / "cut" / "checkpoint-3")
    assert theta_of(checkpoint) == pytest.approx(values[3], rel=1e-3)
    resumed, again = run(tmp_path / "cut", 6, resume_from_checkpoint=True)
    assert again == {step: values[step] for step in (3, 4, 5)}
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))


def test_the_saved_model_has_the_final_value(tmp_path):
    trainer = trainer_of(tmp_path)
    Anneal("yarn", "factor", 1.0, 4.0, steps=6).attach(trainer)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    again, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), torch.arange(3, 40)[None]
    other = hf_posenc.patch(tiny_model("llama"), "yarn", factor=4.0).eval()
    other.load_state_dict(trainer.model.state_dict())
    assert torch.equal(again(ids).logits, trainer.model.eval()(ids).logits)
    assert torch.equal(again(ids).logits, other(ids).logits)


def test_the_best_checkpoint_comes_back_with_its_own_value(tmp_path):
    """Weights of step 2, options of step 6: such a model was never trained."""
    tokens = torch.tensor(blocks()["input_ids"]).flatten()
    trainer = trainer_of(
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_nll@20",
        greater_is_better=True,  # the worst, on the text that it trains on: surely not the last
    )
    evaluation = LengthEvaluation(tokens, [20]).attach(trainer)
    Anneal("rope", "theta", 4.0, 64.0, steps=6).attach(trainer)
    trainer.train()
    best = trainer.state.best_global_step
    assert best < 6
    assert theta_of(trainer.model) == pytest.approx(4.0 + best * 10.0, rel=1e-3)
    assert evaluation.last["eval_nll@20"] == pytest.approx(trainer.state.best_metric, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("t5", "max_distance", 32, 64, 5), "has learned parameters"),
        (("learned", "max_positions", 32, 64, 5), "has learned parameters"),
        (("rope", "thetas", 1.0, 2.0, 5), "has no option 'thetas'; it has: theta, partial"),
        (("rop", "theta", 1.0, 2.0, 5), "Did you mean 'rope'"),
        (("rope", "theta", 2.0, 2.0, 5), "that is no change"),
        (("rope", "theta", 1.0, 2.0, 0), "at least 1, got 0"),
        (("p_rope", "p", 0.0, 1.0, 5, 1, True), "neither of them 0"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Anneal(*arguments)


def test_what_the_model_refuses_is_refused_before_it_is_changed(tmp_path):
    trainer = trainer_of(tmp_path)
    before = hf_posenc.inspect(trainer.model).fingerprint
    with pytest.raises(ValueError, match="factor"):
        Anneal("yarn", "factor", 2.0, -1.0, steps=3).attach(trainer)
    with pytest.raises(ValueError, match="rotates 9 of them"):
        Anneal("rope", "partial", 0.5, 1.0, steps=6).attach(trainer)  # both ends are possible, what lies between is not
    assert hf_posenc.inspect(trainer.model).fingerprint == before
    table = trainer_of(tmp_path, tiny_model("gpt2", max_position_embeddings=LENGTH))
    table.create_optimizer()
    with pytest.raises(ValueError, match="patch before making it"):
        Anneal("rope", "theta", 4.0, 8.0, steps=3).attach(table)
    assert not hf_posenc.inspect(table.model).encodings and len(table.callback_handler.callbacks) == len(trainer.callback_handler.callbacks)


def test_a_schedule_that_reaches_nothing_is_refused(tmp_path):
    """Within 2 ** -40 of each other, two thetas have the same float32 frequencies."""
    trainer = trainer_of(tmp_path)
    with pytest.raises(ValueError, match="changes nothing in this model"):
        Anneal("rope", "theta", 4.0, 4.0 + 2**-40, steps=3).attach(trainer)
    assert not hf_posenc.inspect(trainer.model).encodings


def test_a_change_that_does_not_reach_the_model_stops_the_run(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path)
    Anneal("rope", "theta", 4.0, 8.0, steps=3).attach(trainer)
    monkeypatch.setattr(hf_posenc.patching, "patch", lambda model, *args, **options: model)
    with pytest.raises(ValueError, match=r"from 4.0 to 5.3.*nothing in the model changed"):
        trainer.train()


def test_an_option_that_counts_pairs_moves_in_steps(tmp_path):
    """From all 8 pairs of a head to 4 of them in 6 steps: not each step can take one away."""
    trainer = trainer_of(tmp_path)
    Anneal("p_rope", "p", 1.0, 0.5, steps=6).attach(trainer)
    live = Live(lambda model: hf_posenc.inspect(model).fingerprint)
    trainer.add_callback(live)
    trainer.train()
    assert len({*live.steps.values(), hf_posenc.inspect(trainer.model).fingerprint}) == 5
    assert patch_of(trainer.model).placements[0].request.options == {"p": 0.5}


class Rows(TrainerCallback):
    """The inputs of each forward pass in training mode, by step, and those in evaluation."""

    def __init__(self, trainer):
        self.trainer, self.seen, self.evaluated = trainer, {}, []
        trainer.model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        if module.training:
            self.seen.setdefault(self.trainer.state.global_step, []).append(kwargs)
        else:
            self.evaluated.append(kwargs["input_ids"].shape)


SCHEDULE = {0: 6, 2: 12, 4: 24}


def watched(folder, schedule=SCHEDULE, **more):
    trainer = trainer_of(folder, **more)
    ProgressiveLengths(schedule).attach(trainer)
    return trainer, Rows(trainer)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("evaluate", [{}, {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}, {"eval_strategy": "epoch"}])
def test_rows_grow_with_the_steps_and_their_tokens_stay(accumulation, evaluate, tmp_path):
    """8 blocks are 4 batches: with 3 to a step, each epoch ends with an incomplete one."""
    trainer, rows = watched(tmp_path, gradient_accumulation_steps=accumulation, **evaluate)
    trainer.train()
    assert sorted(rows.seen) == list(range(6))
    for step, batches in rows.seen.items():
        length = 6 if step < 2 else 12 if step < 4 else 24
        assert {tuple(batch["input_ids"].shape) for batch in batches} == {(48 // length, length)}, step
        assert all(batch[name].shape == batch["input_ids"].shape for batch in batches for name in ("labels", "position_ids"))
    trainer.evaluate()
    trainer.evaluate()
    assert rows.evaluated and all(shape[1] == LENGTH for shape in rows.evaluated)


def test_no_token_is_lost_and_positions_begin_at_each_row_and_document():
    lengths = ProgressiveLengths({0: 6, 9: 24})
    trainer = type("Trainer", (), {"args": TrainingArguments("x", use_cpu=True), "add_callback": lambda *_: None})()
    lengths.attach(trainer)
    whole = lengths(list(blocks()))
    assert whole["input_ids"].shape == (8, 24)  # no training, no cutting
    lengths.on_epoch_begin(None, type("State", (), {"global_step": 0})(), None)
    cut = lengths(list(blocks()))
    for name in ("input_ids", "labels"):
        assert torch.equal(cut[name].flatten(), whole[name].flatten())
    for row, positions in enumerate(cut["position_ids"].tolist()):
        for at, position in enumerate(positions):
            begins = at == 0 or whole["position_ids"].flatten()[row * 6 + at] == 0
            assert position == (0 if begins else positions[at - 1] + 1)


def test_a_resumed_run_sees_the_same_rows(tmp_path):
    def run(folder, steps, **resume):
        trainer, rows = watched(folder, max_steps=steps, save_strategy="steps", save_steps=3, gradient_accumulation_steps=2)
        trainer.train(**resume)
        return trainer, rows.seen

    whole, seen = run(tmp_path / "whole", 6)
    run(tmp_path / "cut", 3)
    resumed, again = run(tmp_path / "cut", 6, resume_from_checkpoint=True)
    assert sorted(again) == [3, 4, 5]
    for step, batches in again.items():
        for one, other in zip(batches, seen[step], strict=True):
            assert torch.equal(one["input_ids"], other["input_ids"])
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert_close(one, other)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({}, "begins at step 0"),
        ({5: 6}, "begins at step 0"),
        ({0: 7, 5: 24}, "24; 7 does not"),
        ({0: 1, 5: 24}, "24; 1 does not"),
    ],
)
def test_schedules_of_lengths_that_make_no_sense_are_refused(schedule, message):
    with pytest.raises(ValueError, match=message):
        ProgressiveLengths(schedule)


def test_lengths_need_the_steps_and_the_right_blocks(tmp_path):
    with pytest.raises(ValueError, match="dataloader_num_workers=0"):
        watched(tmp_path, dataloader_num_workers=1)
    trainer, _ = watched(tmp_path, {0: 12, 2: 48})
    with pytest.raises(ValueError, match="rows of 24 tokens, where the schedule of lengths ends at 48"):
        trainer.train()
