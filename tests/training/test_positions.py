"""Short rows at the positions of long ones: what is drawn, and that the model computes with it."""

from collections import Counter

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import options_for, tiny_model
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments, default_data_collator

import hf_posenc
from hf_posenc.training import PoSE, RandomizedPositions

KINDS = [PoSE, RandomizedPositions]
LENGTH, TARGET = 9, 40


def rows(count=4, length=LENGTH, seed=0):
    ids = torch.randint(3, 60, (count, length), generator=torch.Generator().manual_seed(seed)).tolist()
    return [{"input_ids": row, "labels": row} for row in ids]


def drawn(collator, count, length=LENGTH, seed=0):
    return collator(rows(count, length, seed))["position_ids"]


@given(length=st.integers(2, 30), extra=st.integers(0, 50), chunks=st.integers(2, 5), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_pose_has_that_many_chunks_of_consecutive_positions(length, extra, chunks, seed):
    collator = PoSE(length + extra, chunks, seed)
    if length < chunks:
        with pytest.raises(ValueError, match=f"cannot be cut into {chunks} chunks"):
            drawn(collator, 1, length)
        return
    for row in drawn(collator, 3, length, seed):
        steps = row.diff()
        assert row[0] == 0 and (steps >= 1).all() and row[-1] < length + extra
        assert (steps > 1).sum() < chunks


def test_pose_draws_cuts_and_skips_uniformly():
    """Two chunks, L = 4, L' = 7: by the definition 3 places to cut and 4 skips, each pair as often as any other."""
    found = Counter(tuple(row.tolist()) for row in drawn(PoSE(7), 4000, 4))
    expected = Counter()
    for cut in (1, 2, 3):
        for skip in range(4):
            expected[tuple(at if at < cut else at + skip for at in range(4))] += 4000 / 12
    assert found.keys() == expected.keys()
    assert sum((found[row] - expected[row]) ** 2 / expected[row] for row in expected) < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001


def test_later_chunks_start_no_earlier_than_the_one_before():
    """Three chunks, L = 3, L' = 5: u1 ~ U{0..2}, u2 ~ U{u1..2}."""
    found = Counter(tuple(row.tolist()) for row in drawn(PoSE(5, chunks=3), 6000, 3))
    expected = {(0, 1 + u1, 2 + u2): 6000 / 3 / (3 - u1) for u1 in range(3) for u2 in range(u1, 3)}
    assert found.keys() == expected.keys()
    assert sum((found[row] - expected[row]) ** 2 / expected[row] for row in expected) < 20.5  # 5 degrees of freedom


def test_randomized_positions_are_a_sorted_subset_and_every_subset_is_as_likely():
    found = Counter(tuple(row.tolist()) for row in drawn(RandomizedPositions(6), 4000, 3))
    expected = {(a, b, c): 4000 / 20 for a in range(6) for b in range(a + 1, 6) for c in range(b + 1, 6)}
    assert found.keys() == expected.keys()
    assert sum((found[row] - expected[row]) ** 2 / expected[row] for row in expected) < 43.8  # 19 degrees of freedom


@pytest.mark.parametrize("kind", KINDS)
def test_draws_depend_on_seed_row_and_epoch_and_on_nothing_else(kind):
    collator = kind(TARGET)
    together = drawn(collator, 8)
    one_by_one = torch.cat([collator([row])["position_ids"] for row in reversed(rows(8))]).flip(0)
    assert torch.equal(together, one_by_one) and torch.equal(together, drawn(kind(TARGET), 8))
    assert len({tuple(row.tolist()) for row in together}) > 4
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(together, drawn(collator, 8)) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(together, drawn(kind(TARGET, seed=1), 8))
    collator.epoch = 1
    assert not torch.equal(together, drawn(collator, 8))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_cannot_be_placed_say_why(kind):
    with pytest.raises(ValueError, match="9 tokens do not fit into 8 positions"):
        drawn(kind(8), 1)
    assert drawn(kind(9), 1).tolist() == [list(range(9))]
    packed = [{**row, "position_ids": list(range(LENGTH))} for row in rows(1)]
    with pytest.raises(ValueError, match="boundaries=False"):
        kind(TARGET)(packed)
    with pytest.raises(ValueError, match="at least 2 chunks"):
        PoSE(TARGET, chunks=1)


@torch.no_grad()
def test_the_first_chunk_is_seen_and_without_the_mask_it_would_not_be():
    model, batch = tiny_model("llama", max_position_embeddings=TARGET), PoSE(TARGET)(rows(1))
    jump = int(batch["position_ids"][0].diff().argmax()) + 1
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][:, :jump] = 60 - other["input_ids"][:, :jump]
    assert 0 < jump < LENGTH

    def influence(**drop):
        one, two = (model(**{**inputs, **drop}, use_cache=False).logits[:, -1] for inputs in (batch, other))
        return (one - two).abs().max().item()

    assert influence() > 1e-2
    assert influence(attention_mask=None) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", hf_posenc.list_encodings())
@torch.no_grad()
def test_logits_are_those_of_a_long_row_whose_other_positions_are_hidden(kind, name):
    """The same tokens in a row of all 40 positions, consecutive ones, where a padding mask hides what the draw left out."""
    torch.manual_seed(7)
    model = hf_posenc.patch(tiny_model("llama", max_position_embeddings=12), name, **options_for(name))
    batch = kind(TARGET)(rows(2))
    long = torch.zeros(2, TARGET, dtype=torch.long)
    mask = torch.zeros(2, TARGET, dtype=torch.long).scatter(1, batch["position_ids"], 1)
    long.scatter_(1, batch["position_ids"], batch["input_ids"])
    full = model(long, attention_mask=mask, position_ids=torch.arange(TARGET).expand(2, -1), use_cache=False).logits
    expected = torch.stack([full[row, batch["position_ids"][row]] for row in range(2)])
    del batch["labels"]
    assert_close(model(**batch, use_cache=False).logits, expected, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_trainer_trains_at_the_drawn_positions_and_goes_on_after_an_interruption(kind, tmp_path):
    """Each epoch has its own draws; a resumed run sees the rows and draws of one that was never interrupted."""
    whole, seen = train(kind, tmp_path / "whole", 9)
    train(kind, tmp_path / "cut", 5)
    resumed, again = train(kind, tmp_path / "cut", 9, resume_from_checkpoint=True)
    assert [again[step] for step in (5, 6, 7, 8)] == [seen[step] for step in (5, 6, 7, 8)]
    for name, parameter in whole.model.named_parameters():
        assert_close(resumed.model.get_parameter(name), parameter, atol=1e-6, rtol=1e-5)
    by_epoch = [dict(pair for step in range(first, first + 4) for pair in seen[step]) for first in (0, 4)]
    assert by_epoch[0].keys() == by_epoch[1].keys() and by_epoch[0] != by_epoch[1]


def train(kind, folder, steps, **resume):
    """The trainer, and by step what the model saw: tokens of a row -> positions."""
    model, seen = tiny_model("llama", max_position_embeddings=TARGET), {}
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        save_steps=5,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=Dataset.from_list(rows(8)), data_collator=default_data_collator)
    kind(TARGET).attach(trainer)

    def look(module, args, kwargs):
        ids, positions = kwargs["input_ids"].tolist(), kwargs["position_ids"].tolist()
        seen[trainer.state.global_step] = [(tuple(row), tuple(at)) for row, at in zip(ids, positions, strict=True)]

    model.register_forward_pre_hook(look, with_kwargs=True)
    trainer.train(**resume)
    return trainer, seen
