"""Options of Trainer, the collators of transformers, and TRL, around a patched model."""

import pytest
import torch
from datasets import Dataset
from tiny import options_for, save_tiny
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    Trainer,
    TrainingArguments,
)

import hf_posenc

pytest.importorskip("trl")
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

NAMES = ["alibi", "yarn", "rerope", "shaw"]
"""A bias, the native slot, a remap, and parameters in each layer."""
each = pytest.mark.parametrize("name", NAMES)
some = pytest.mark.parametrize("name", NAMES[1::2])
SETTINGS = {"max_steps": 2, "learning_rate": 1e-2, "use_cpu": True, "bf16": False, "logging_steps": 1, "save_strategy": "no"}
SETTINGS |= {"report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("model"))
    AutoTokenizer.from_pretrained(folder, eos_token="<s>", pad_token="<s>").save_pretrained(folder)
    return folder


@pytest.fixture
def patched(folder):
    def patched(name):
        torch.manual_seed(1)
        return hf_posenc.patch(AutoModelForCausalLM.from_pretrained(folder), name, **options_for(name))

    return patched


def rows(*lengths):
    """Token ids of texts of these lengths."""
    return [{"input_ids": torch.arange(at, at + length).remainder(90).add(3).tolist()} for at, length in enumerate(lengths)]


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def fitted(model, folder, trainer=Trainer, arguments=TrainingArguments, **changes):
    """A trainer that has trained."""
    given = {key: changes.pop(key) for key in ("train_dataset", "data_collator", "processing_class") if key in changes}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = {"train_dataset": rows(*range(5, 21)), "data_collator": DataCollatorForLanguageModeling(tokenizer, mlm=False)} | given
    made = trainer(model, args=arguments(output_dir=folder / "out", **SETTINGS | changes), **given)
    made.train()
    return made


# -- Trainer ------------------------------------------------------------------------------------------------------------


@some
@pytest.mark.slow
def test_torch_compile(name, patched, folder, tmp_path):
    """The compiled model trains as the other does, and is saved under its own names."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = fitted(patched(name), folder, torch_compile=True, torch_compile_backend="eager")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    plain = fitted(patched(name), folder)
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)
    compiled.save_model(tmp_path)
    ids = torch.arange(5, 45)[None]
    assert_close(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, plain.model.eval()(ids).logits, atol=1e-3, rtol=1e-3)


@each
def test_rows_grouped_by_length(name, patched, folder):
    """Rows of like length come together; the loss is that of each row alone."""
    seen, model = [], patched(name)
    model.register_forward_pre_hook(lambda module, args, given: seen.append({**given, "state": copied(module)}), with_kwargs=True)
    trainer = fitted(model, folder, train_sampling_strategy="group_by_length", train_dataset=rows(*[5, 30] * 32))
    assert {int(batch["attention_mask"].sum(1).min()) for batch in seen} <= {30, 5} and seen[0]["attention_mask"].all()
    for batch, loss in zip(seen, losses(trainer), strict=True):
        again = patched(name)
        again.load_state_dict(batch["state"])
        texts = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        assert loss == pytest.approx(loss_alone(again, texts), rel=1e-4)


def loss_alone(model, texts):
    """Mean nats over all tokens that are predicted in `texts`, each in a pass of its own."""
    found = [(model(input_ids=ids[None], labels=ids[None]).loss.item(), len(ids) - 1) for ids in texts]
    return sum(loss * count for loss, count in found) / sum(count for _, count in found)


def copied(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", NAMES[-1:])
def test_auto_find_batch_size(name, patched, folder):
    """The run that fails for want of memory, and begins again with fewer rows, is the run that has few from the start."""
    tried, model = [], patched(name)

    def too_much(module, args, given):
        tried.append(len(given["input_ids"]))
        if tried[-1] > 2:  # a smaller batch is tried after each: nine tenths of the rows
            raise RuntimeError("CUDA out of memory.")

    model.register_forward_pre_hook(too_much, with_kwargs=True)
    found = fitted(model, folder, auto_find_batch_size=True, per_device_train_batch_size=3)
    assert tried[0] == 3 and tried[-1] == 2
    few = fitted(patched(name), folder, per_device_train_batch_size=tried[-1])
    assert losses(found) == pytest.approx(losses(few), rel=1e-5)
    assert hf_posenc.inspect(found.model).fingerprint == hf_posenc.inspect(few.model).fingerprint


@each
@pytest.mark.parametrize("how", ["positions", "lengths for flash attention"])
def test_flattened_batches(name, how, patched):
    """DataCollatorWithFlattening: texts in one row, without padding, each with the loss that it has alone."""
    texts, model = rows(12, 7, 20), patched(name)
    batch = DataCollatorWithFlattening(return_flash_attn_kwargs=how != "positions")(texts)
    together = model(**batch, use_cache=False).loss
    assert together.item() == pytest.approx(loss_alone(model, [torch.tensor(text["input_ids"]) for text in texts]), rel=1e-5)
    positions = torch.arange(batch["input_ids"].numel())[None]
    assert model(input_ids=batch["input_ids"], position_ids=positions, labels=batch["labels"]).loss.item() != pytest.approx(together.item())


# -- TRL ----------------------------------------------------------------------------------------------------------------


@some
def test_sft_without_padding(name, patched, folder):
    """The losses of TRL's padding_free are those of padded rows."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = Dataset.from_list([{"text": "abcdefgh"[:length]} for length in (3, 8, 5, 6)])
    runs = []
    for padding_free in (False, True):
        given = {"train_dataset": texts, "data_collator": None, "processing_class": tokenizer}
        runs.append(losses(fitted(patched(name), folder, SFTTrainer, SFTConfig, padding_free=padding_free, max_length=None, **given)))
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)


def preferences():
    return Dataset.from_list([{"prompt": f"{n} is ", "chosen": f"{n}", "rejected": f"not {n}"} for n in range(8)])


@torch.no_grad()
def log_probability(model, tokenizer, prompt, answer):
    """Of an answer and the end of it, by the definition."""
    begin, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + answer))
    ids = torch.tensor([[*whole, tokenizer.eos_token_id]])
    return model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[len(begin) - 1 :].sum()


@some
def test_dpo_against_a_stock_reference(name, patched, folder):
    """The first loss is that of the formula, with the numbers of both models; the reference stays as it was."""
    student, reference = patched(name), AutoModelForCausalLM.from_pretrained(folder)
    tokenizer, before = AutoTokenizer.from_pretrained(folder), copied(reference)
    margins = []
    for row in preferences().select(range(4)):
        gains = [
            log_probability(student, tokenizer, row["prompt"], row[answer])
            - log_probability(reference, tokenizer, row["prompt"], row[answer])
            for answer in ("chosen", "rejected")
        ]
        margins.append(gains[0] - gains[1])
    expected = -torch.nn.functional.logsigmoid(0.1 * torch.stack(margins)).mean().item()
    given = {"train_dataset": preferences().select(range(4)), "data_collator": None, "processing_class": tokenizer}
    trainer = fitted(student, folder, lambda model, **more: DPOTrainer(model, reference, **more), DPOConfig, beta=0.1, **given)
    assert losses(trainer)[0] == pytest.approx(expected, rel=1e-3) and losses(trainer)[0] != pytest.approx(0.6931, abs=1e-3)
    assert hf_posenc.inspect(trainer.ref_model).encodings == () and hf_posenc.inspect(student).encodings[0].name == name
    assert all(torch.equal(value, before[key]) for key, value in trainer.ref_model.state_dict().items())


@pytest.mark.parametrize("kind", ["stock", "patched"])
def test_dpo_loads_a_reference_of_what_the_checkpoint_of_the_student_says(kind, patched, folder, tmp_path):
    student = patched("alibi")
    if kind == "patched":
        student.save_pretrained(tmp_path)
        student = AutoModelForCausalLM.from_pretrained(tmp_path)
    given = {"train_dataset": preferences(), "processing_class": AutoTokenizer.from_pretrained(folder)}
    reference = DPOTrainer(student, args=DPOConfig(output_dir=tmp_path / "out", **SETTINGS), **given).ref_model
    assert [found.name for found in hf_posenc.inspect(reference).encodings] == (["alibi"] if kind == "patched" else [])


@some
def test_grpo_against_a_stock_reference(name, patched, folder):
    """The student generates by its encoding; the divergence from the reference is seen."""
    student = patched(name)
    given = {"train_dataset": preferences(), "data_collator": None, "processing_class": AutoTokenizer.from_pretrained(folder)}
    more = {"num_generations": 4, "max_completion_length": 6, "beta": 0.1}

    def made(model, data_collator, **others):
        return GRPOTrainer(model, lambda completions, **_: [float(len(set(text))) for text in completions], **others)

    trainer = fitted(student, folder, made, GRPOConfig, **more, **given)
    assert trainer.state.log_history[0]["kl"] > 0.01 and hf_posenc.inspect(trainer.ref_model).encodings == ()
    assert hf_posenc.inspect(student).encodings[0].name == name
