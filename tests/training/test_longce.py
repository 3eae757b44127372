"""LongCE against its formula in float64 (norms and rotations are in float32 there), token by token with full logits, and in training."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import save_tiny
from training.test_loss import assert_same, gradients, model_of, step, trained

import hf_posenc
from hf_posenc import finetuning
from hf_posenc.finetuning.model import load_model, make_ready
from hf_posenc.training import LongCE, chunk_loss, full_loss, separate_documents

LENGTH = 23
RULE = LongCE(gamma=1.5, short=5, stride=4)


def rows(seed=0):
    """Ids, labels with gaps, no padding."""
    ids = torch.randint(3, 60, (2, LENGTH), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[0, :2] = labels[0, 11] = labels[1, -3:] = -100
    return {"input_ids": ids, "labels": labels}


def sharp():
    """A model that predicts with some confidence, so that contexts make a difference."""
    model = model_of(dtype=torch.float64, max_position_embeddings=64)
    model.model.norm.weight.data.mul_(20)
    return model


def nats(model, ids, at, **inputs):
    """Of token `at` of ids [T], given all before it."""
    return -model(ids[None, :at], **{name: value[None, :at] for name, value in inputs.items()}).logits[0, -1].log_softmax(-1)[ids[at]]


def formula(model, inputs, rule, count=None, **more):
    """The loss, and the weights of its tokens."""
    terms, weights = [], []
    for row, labels in zip(inputs["input_ids"], inputs["labels"], strict=True):
        for at in range(1, LENGTH):
            if labels[at] == -100:
                continue
            long, weight = nats(model, row, at), 1.0
            if at >= rule.short:
                start = (at - rule.short) // rule.stride * rule.stride
                with torch.no_grad():
                    weight = min(torch.exp(nats(model, row[start:], at - start) - long).item(), rule.gamma)
            weights.append(weight)
            terms.append(weight * long)
    return torch.stack(terms).sum() / (count or len(terms)), weights


@pytest.mark.parametrize("chunk", [3, 1000])
def test_loss_and_gradients_are_those_of_the_formula(chunk):
    model, inputs = sharp(), rows()
    loss, weights = formula(model, inputs, RULE)
    loss.backward()
    expected = gradients(model)
    assert 3 < sum(weight == 1.5 for weight in weights) < len(weights) / 2 and sum(weight < 0.9 for weight in weights) > 3
    ours, found = step(chunk_loss(model, chunk, RULE), **inputs)
    assert ours.loss.item() == pytest.approx(loss.item(), rel=1e-7) and ours.logits is None
    assert_same(found, expected, 1e-5)
    assert model(**inputs, num_items_in_batch=7).loss.item() == pytest.approx(loss.item() * len(weights) / 7, rel=1e-7)


def test_weights_are_of_training_alone():
    model, inputs = sharp(), rows()
    plain = chunk_loss(model, 4)(**inputs).loss.item()
    chunk_loss(model, 4, RULE)
    assert model(**inputs).loss.item() != pytest.approx(plain, rel=1e-3)
    assert model.eval()(**inputs).loss.item() == pytest.approx(plain, rel=1e-6)
    assert chunk_loss(model.train(), 4)(**inputs).loss.item() == pytest.approx(plain, rel=1e-6)
    assert chunk_loss(model, 4, LongCE())(**inputs).loss.item() == pytest.approx(plain, rel=1e-6), "no row has a longer context"
    full_loss(chunk_loss(model, 4, RULE))
    assert not {"forward", "loss_chunk", "loss_weights"} & {*vars(model)}


def test_the_short_windows_are_those_of_the_paper_but_the_first():
    """Every token is in one of them, after `short` to `short` + `stride` - 1 others."""
    for length in range(1, 40):
        found = {at: start for start, stop in RULE.windows(length) for at in range(start + RULE.short, stop)}
        assert sorted(found) == [*range(RULE.short + RULE.stride, length)]
        assert all(RULE.short <= at - start < RULE.short + RULE.stride for at, start in found.items())
    assert LongCE().reads(32768) == pytest.approx(27 * 5120 / 32768)


@pytest.mark.parametrize("name", ["yarn", "alibi", "rerope"])
def test_patched_models_checkpoint_their_activations(name):
    model, inputs = sharp(), rows()
    hf_posenc.patch(model, name, **({"factor": 4.0} if name == "yarn" else {}))
    expected = formula(model, inputs, RULE)[0].item()
    model.activation_checkpointing_enable() if hasattr(model, "activation_checkpointing_enable") else model.gradient_checkpointing_enable()
    assert step(chunk_loss(model, 4, RULE), **inputs, use_cache=False)[0].loss.item() == pytest.approx(expected, rel=1e-7)


def test_lora_trains_with_it():
    model, inputs = sharp(), rows()
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).double().train()
    loss, _ = formula(model, inputs, RULE)
    loss.backward()
    expected = gradients(model)
    ours, found = step(chunk_loss(model, 4, RULE), **inputs)
    assert ours.loss.item() == pytest.approx(loss.item(), rel=1e-7)
    assert_same(found, expected, 1e-5)


def test_documents_of_a_row_stay_apart_in_short_contexts():
    """A row of two documents weighs as the two by themselves, where short contexts begin at the same tokens."""
    model = sharp()
    separate_documents(model)
    chunk_loss(model, 4, LongCE(gamma=1.5, short=4, stride=4))
    ids = rows()["input_ids"][:1, :20]
    labels = ids.clone()
    labels[0, 8] = -100
    positions = torch.cat([torch.arange(8), torch.arange(12)])[None]
    together = model(input_ids=ids, labels=labels, position_ids=positions, use_cache=False).loss.item() * 18
    apart = [model(input_ids=part, labels=part, use_cache=False).loss.item() * (part.numel() - 1) for part in (ids[:, :8], ids[:, 8:])]
    assert together == pytest.approx(sum(apart), rel=1e-7)
    whole = model(input_ids=ids, labels=labels, use_cache=False).loss.item() * 18
    assert together != pytest.approx(whole, rel=1e-3)


def test_what_cannot_be_cut_is_refused():
    model, inputs = chunk_loss(model_of(max_position_embeddings=64), 4, RULE), rows()
    with pytest.raises(ValueError, match="cannot cut attention_mask"):
        model(**inputs, attention_mask=torch.ones(2, 1, LENGTH, LENGTH).bool())
    for wrong in ({"gamma": 0}, {"short": 0}, {"stride": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LongCE(**wrong)


def test_accumulated_micro_batches_are_one_batch(tmp_path):
    """Rows have different numbers of labels; the sums are divided by all of them."""
    rule = LongCE(gamma=3.0, short=3, stride=2)
    _, one = trained(chunk_loss(model_of(), 5, rule), tmp_path / "a", per_device_train_batch_size=4, gradient_accumulation_steps=1)
    _, two = trained(chunk_loss(model_of(), 5, rule), tmp_path / "b", per_device_train_batch_size=2, gradient_accumulation_steps=2)
    _, plain = trained(chunk_loss(model_of(), 5), tmp_path / "c")
    assert one == pytest.approx(two, rel=1e-5)
    assert abs(one[0] - plain[0]) > 1e-3 * plain[0]


def test_the_flag_reaches_the_model(tmp_path):
    folder = save_tiny(tmp_path / "tiny")
    words = ["--model", str(folder), "--block_size", "64", "--loss", "longce:short=16,gamma=4,stride=8", "--loss_chunk", "7"]
    for asked, weights in ((words, LongCE(4.0, 16, 8)), (words[:4], None)):
        settings = finetuning.parse(asked)
        assert make_ready(load_model(str(folder), settings), settings).loss_weights == weights


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--loss", "longcé"], "there are: ce, longce"),
        (["--loss", "ce:gamma=2"], "'ce' has no option"),
        (["--loss", "longce:k=3"], "It takes the options gamma, short, stride"),
        (["--loss", "longce:gamma=-1"], "gamma must be a finite number above 0"),
        (["--loss", "longce"], "weighs no token of blocks of 1,024 tokens"),
        (["--loss", "longce:short=64,stride=16", "--loss_chunk", "0"], "is computed in chunks"),
        (["--loss", "longce:short=64,stride=16", "--label_smoothing_factor", "0.1"], "exclude each other"),
    ],
)
def test_mistakes_in_the_flag(words, message):
    with pytest.raises(ValueError, match=message):
        finetuning.parse(words)


def test_what_has_no_chunks_is_told_to_leave_it_out():
    router = model_of("gpt_oss", output_router_logits=True)
    with pytest.raises(ValueError, match="--loss ce --loss_chunk 0 trains with the full loss"):
        make_ready(router, finetuning.parse(["--block_size", "64", "--boundaries", "cross", "--loss", "longce:short=16,stride=8"]))
