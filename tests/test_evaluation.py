"""Perplexity, its loss and its corpus, on tiny models with random weights."""

import json
import math

import pytest
import torch
from tiny import needed_by
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

import hf_posenc
from hf_posenc.evaluation import CorpusError, Document, Result, Text, dataset_texts, embedded_corpus, encode, perplexity, read_texts
from hf_posenc.evaluation.corpus import cut
from hf_posenc.evaluation.measure import Meter
from hf_posenc.evaluation.perplexity.protocols import Window
from hf_posenc.evaluation.perplexity.run import checked
from hf_posenc.evaluation.perplexity.tally import Record, Tally, pool, pool_buckets
from hf_posenc.evaluation.token_nll import find_head, token_nll
from hf_posenc.files import write_atomically

VOCABULARY = 257
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
FAMILIES = {
    "llama": SMALL,
    "cohere": {**SMALL, "logit_scale": 3.0},
    "granite": {**SMALL, "logits_scaling": 0.2},
    "gemma2": {**SMALL, "head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 16},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "opt": {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 16},
}


def tiny(family="llama", dtype=torch.float64, **changes):
    """A model with weights large enough that the logits differ visibly."""
    torch.manual_seed(0)
    special = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
    config = AutoConfig.for_model(family, **FAMILIES[family], **special, **changes)
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def ids(length, seed=1):
    return torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def naive_nll(model, tokens):
    """The definition: full logits, one forward."""
    return F.cross_entropy(model(input_ids=tokens[None]).logits[0, :-1].float(), tokens[1:], reduction="none")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [7, 1024])
def test_chunked_loss_is_the_full_logits_loss(family, chunk):
    model, tokens = tiny(family), ids(50)
    head = find_head(model, tokens)
    assert head is not None
    assert token_nll(model, tokens, head, chunk).float() == pytest.approx(naive_nll(model, tokens), abs=1e-5)


def test_a_head_we_do_not_know_falls_back_to_the_models_own_forward():
    model, tokens = tiny(), ids(50)
    forward = model.forward

    def halved(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits / 2
        return output

    model.forward = halved
    result = perplexity(model, tokens, lengths=[50])
    assert result.head == "full logits"
    assert result.scores[0].nats == pytest.approx(naive_nll(model, tokens).mean().item(), abs=1e-5)


@pytest.mark.parametrize("name", ["count", "min_tokens", "max_tokens", "pass_tokens", "batch_tokens", "last_k", "chunk"])
@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_numbers_out_of_bounds_are_named_before_anything_is_loaded(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be an integer of at least 1"):
        perplexity("no/such/model", lengths=[8], **{name: value})


def test_the_loss_never_holds_all_logits():
    model, largest = tiny(), []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: largest.append(output.shape[1]))
    perplexity(model, ids(100), lengths=[100], chunk=16)
    assert max(largest) == 16


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_one_forward_gives_the_curve_of_separate_forwards(family):
    model, tokens = tiny(family), ids(96)
    result = perplexity(model, tokens, lengths=[64, 16, 96])
    assert result.forward == "one per document"
    assert list(result.curve) == [16, 64, 96]
    for length, found in result.curve.items():
        assert found == pytest.approx(naive_nll(model, tokens[:length]).mean().exp().item(), rel=1e-5)


@pytest.mark.cover("encoding_kind")
def test_one_forward_gives_the_whole_curve_of_every_encoding(name):
    """Beyond the native 64 positions too, for every encoding that is defined there: as decoded, as evaluated."""
    description = hf_posenc.describe(name)
    model, tokens = tiny(dtype=torch.float32, max_position_embeddings=64), ids(128)
    with hf_posenc.patched(model, name, **needed_by(name)):
        result = perplexity(model, tokens, lengths=[16, 48, 128] if description.any_length else [16, 48])
        assert (result.forward, result.head) == ("one per document", "chunked")
        for score in result.scores:
            assert score.nats == pytest.approx(naive_nll(model, tokens[: score.length]).mean().item(), abs=1e-4)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_length_dependent_stock_models_get_one_forward_per_length(rope_type):
    extra = {"factor": 4.0} if rope_type == "dynamic" else {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_type": rope_type, "rope_theta": 100.0, "original_max_position_embeddings": 32, **extra}
    model, lengths = tiny(max_position_embeddings=32 if rope_type == "dynamic" else 128, rope_parameters=rope), [16, 64, 128]
    documents = [ids(128, seed) for seed in (1, 2)]
    with torch.no_grad():
        model(input_ids=ids(128)[None])  # what ran before must not matter
    result = perplexity(model, documents, lengths=lengths)
    assert result.forward == "one per document and length"
    for length, found in result.curve.items():
        fresh = tiny(max_position_embeddings=model.config.max_position_embeddings, rope_parameters=dict(rope))
        expected = torch.cat([naive_nll(fresh, document[:length]) for document in documents]).mean().exp().item()
        assert found == pytest.approx(expected, rel=1e-5)
    forced = perplexity(model, documents, lengths=lengths, one_forward=True)
    assert abs(forced.scores[0].nats - result.scores[0].nats) > 1e-4, "these models would not have needed it"


def counted(nll, length):
    """The record of one window of a document, with given nats."""
    window, nll = Window(0, len(nll) + 1, 1, len(nll) + 1), torch.tensor(nll)
    record = Record(0, "document 0", window.stop, "", tallies={length: Tally()})
    record.tallies[length].add(Document("d", ids(window.stop)), window, nll, length, 2, None)
    record.add_buckets(window, nll)
    return record


def test_documents_are_weighted_by_their_tokens():
    """Losses 1, 2, 3 of one document and 10 of another: 16 / 4, not the mean of 2 and 10."""
    score = pool([counted([1.0, 2.0, 3.0], 4), counted([10.0], 4)], 4)
    assert score.tokens_scored == 4
    assert score.nats == pytest.approx(4.0)
    assert score.perplexity == pytest.approx(math.exp(4.0))
    assert score.last_nats == pytest.approx(2.5), "only the document that reaches the length has a tail there"
    assert score.standard_error == pytest.approx(3.0)  # sqrt(((6 - 3 * 4)^2 + (10 - 4)^2) * 2 / 1) / 4


def test_equal_documents_have_the_textbook_standard_error():
    score = pool([counted([mean] * 9, 10) for mean in (1.0, 2.0, 6.0)], 10)
    assert score.standard_error == pytest.approx(torch.tensor([1.0, 2.0, 6.0]).std().item() / math.sqrt(3))


def test_buckets_double_and_cover_every_prediction():
    buckets = pool_buckets([counted([float(position) for position in range(1, 600)], 600)], 600)
    assert [(each.start, each.stop, each.tokens_scored) for each in buckets] == [(1, 256, 255), (256, 512, 256), (512, 600, 88)]
    assert [each.nats for each in buckets] == pytest.approx([128.0, 383.5, 555.5])


def test_key_tokens_are_counted_apart():
    keys, tally = torch.tensor([False, False, True, True, False]), Tally()
    tally.add(Document("d", ids(5)), Window(0, 5, 1, 5), torch.tensor([1.0, 2.0, 4.0, 8.0]), 5, 2, keys)
    assert (tally.key_tokens, tally.key_nats, tally.nats) == (2, 6.0, 15.0)


def test_short_documents_are_skipped_and_said_so():
    result = perplexity(tiny(), [ids(20), ids(10)], lengths=[16])
    assert [each["tokens"] for each in result.documents] == [20]
    assert result.skipped == [{"name": "document 1", "tokens": 10, "reason": "fewer than 16 tokens"}]


def test_too_little_text_says_how_many_tokens_there_are_and_are_needed():
    with pytest.raises(CorpusError, match="has 20 tokens and 64 are needed"):
        perplexity(tiny(), ids(20), lengths=[16, 64])


@pytest.mark.parametrize("lengths", [[], [1], [0, 16]])
def test_lengths_below_two_are_refused(lengths):
    with pytest.raises(ValueError, match="at least 2"):
        perplexity(tiny(), ids(20), lengths=lengths)


def test_a_position_table_that_is_too_short_is_an_error_of_ours():
    with pytest.raises(ValueError, match="table of 128 positions and 200"):
        perplexity(tiny("gpt2"), ids(200), lengths=[200])


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_a_loss_that_is_not_finite_names_its_position(bad):
    nll = torch.tensor([1.0] * 12 + [float(bad)] * 7)
    with pytest.raises(FloatingPointError, match=rf"token 13 of document 0 is {bad} .* \(7 of 19"):
        checked(nll, Document("document 0", ids(20)), Window(0, 20, 1, 20))


def test_a_broken_model_is_found_out():
    model = tiny()
    model.get_output_embeddings().weight.data[7] = float("nan")
    with pytest.raises(FloatingPointError, match="token 1 of document 0 is nan"):
        perplexity(model, ids(20), lengths=[20])


def test_the_model_is_left_as_it_was():
    model = tiny().train()
    model.model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    perplexity(model, ids(20), lengths=[20])
    assert {name: module.training for name, module in model.named_modules()} == before
    assert not any(module._forward_hooks for module in model.modules())
    model(input_ids=ids(20)[None]).logits.sum().backward()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_progress_adds_up_to_the_tokens_run(family):
    done = []
    perplexity(tiny(family), [ids(20), ids(30)], lengths=[10, 20], progress=done.append)
    assert sum(done) == pytest.approx(40)
    assert len(done) == 4, "two layers, two documents"


def test_a_result_carries_what_it_takes_to_read_it_and_survives_the_disk(tmp_path):
    result = perplexity(tiny(), [ids(30), ids(30, seed=2)], lengths=[10, 20], settings={"seed": 1})
    path = result.save(tmp_path / "new folder" / "run.json")
    assert Result.load(path) == result
    stored = json.loads(path.read_text())
    assert stored["protocol"] == "prefix"
    assert (stored["dtype"], stored["device"], stored["cache"], stored["head"]) == ("float64", "cpu", False, "chunked")
    assert {"python", "torch", "transformers", "hf_posenc"} <= stored["versions"].keys()
    assert stored["documents"][0]["sha256"] != stored["documents"][1]["sha256"]
    assert stored["tokens_per_second"] == pytest.approx(40 / stored["seconds"])
    assert stored["peak_memory"] > 10**7
    assert list(tmp_path.rglob("*")) == [path.parent, path], "no temporary file is left"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "run.json", "old")

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


class ByteTokenizer:
    """One token for each UTF-8 byte, as `transformers` would offer it."""

    is_fast, name_or_path, bos_token_id = True, "bytes", 1

    def __init__(self, adds_bos=False):
        self.adds_bos = adds_bos

    def __len__(self):
        return VOCABULARY

    def __call__(self, text, add_special_tokens=True, **_):
        spans = [(at, at + 1) for at, character in enumerate(text) for _ in character.encode()]
        bos = [self.bos_token_id] if add_special_tokens and self.adds_bos else []
        return {"input_ids": bos + list(text.encode()), "offset_mapping": spans}


@pytest.mark.parametrize(("adds_bos", "rule", "added"), [(False, "auto", 0), (True, "auto", 1), (True, "never", 0), (False, "always", 1)])
def test_bos_rule_and_bits_per_byte(adds_bos, rule, added):
    model, text = tiny(), "naïve text, naïve bytes"
    result = perplexity(model, ByteTokenizer(adds_bos), text, lengths=[12], bos=rule)
    document = encode(ByteTokenizer(adds_bos), Text("t", text), rule)
    assert len(document) == len(text.encode()) + added
    assert result.bos == f"{rule} ({'added' if added else 'none added'})"
    assert result.scores[0].bits_per_byte == pytest.approx(result.scores[0].nats / math.log(2)), "one token, one byte"


def test_a_document_is_cut_into_consecutive_pieces_each_with_bos():
    text = "abcdefghijkl"
    plain = encode(ByteTokenizer(), Text("t", text), "never")
    assert [bytes(each.input_ids.tolist()) for each in cut(plain, 4, 3)] == [b"abcd", b"efgh", b"ijkl"]
    with_bos = encode(ByteTokenizer(), Text("t", text), "always")
    pieces = cut(with_bos, 5, 3, bos=True)
    assert [bytes(each.input_ids.tolist()) for each in pieces] == [b"\x01abcd", b"\x01efgh", b"\x01ijkl"]
    assert [each.byte_ends for each in pieces] == [(0, 1, 2, 3, 4)] * 3
    assert [each.byte_ends for each in cut(plain, 4, 3)] == [(1, 2, 3, 4)] * 3
    tails = plain.tail(4), with_bos.tail(4, bos=True), with_bos.tail(13, bos=True)
    assert [bytes(each.input_ids.tolist()) for each in tails] == [b"ijkl", b"\x01jkl", b"\x01abcdefghijkl"]
    assert tails[1].byte_ends == (0, 1, 2, 3)
    with pytest.raises(CorpusError, match="t has 12 tokens; 4 x 4 = 16 are needed"):
        cut(plain, 4, 4)


def test_text_needs_a_tokenizer():
    with pytest.raises(ValueError, match="needs a tokenizer"):
        perplexity(tiny(), "some text", lengths=[4])


def test_a_batch_is_not_one_document():
    with pytest.raises(ValueError, match=r"one document, \[L\] or \[1, L\], got \[2, 10\]"):
        perplexity(tiny(), ids(20).view(2, 10), lengths=[10])


def test_embedded_corpus_is_english_and_always_the_same():
    text = embedded_corpus()
    assert text == embedded_corpus()
    assert len(text) > 100_000
    assert text.count(" the ") > 1000


def test_text_files_that_cannot_be_used_are_named(tmp_path):
    good, empty, binary = tmp_path / "good.txt", tmp_path / "empty.txt", tmp_path / "binary.txt"
    good.write_text("some text")
    empty.write_text(" \n")
    binary.write_bytes(b"ab\xff\xfe")
    assert read_texts([good, str(good)]) == ["some text", "some text"]
    for path, reason in [(empty, "is empty"), (binary, "is not UTF-8 text .* at byte 2"), (tmp_path / "none.txt", "No such file")]:
        with pytest.raises(CorpusError, match=reason) as error:
            read_texts([good, path])
        assert str(path) in str(error.value)


def test_a_local_dataset_is_read_row_by_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"body": body, "n": 1}) for body in ["one", "", "three"]))
    assert [(each.name, each.content) for each in dataset_texts(str(path), text_column="body")] == [
        (f"{path}[0]", "one"),
        (f"{path}[2]", "three"),
    ]
    with pytest.raises(CorpusError, match="no column 'text'; it has: body, n"):
        list(dataset_texts(str(path)))
    with pytest.raises(CorpusError, match="cannot load the dataset"):
        list(dataset_texts(str(tmp_path / "missing.jsonl")))


def test_documents_can_be_given_ready_made():
    document = Document("mine", ids(20))
    result = perplexity(tiny(), document, lengths=[20])
    assert result.documents == [{"name": "mine", "tokens": 20, "sha256": document.sha256}]
    assert result.scores[0].bits_per_byte is None


def test_peak_memory_is_that_of_the_run_not_of_what_ran_before():
    torch.ones(2**26).sum()
    with Meter(torch.device("cpu")) as small:
        pass
    if small.kind != "resident memory":
        pytest.skip("this system does not reset its high-water mark")
    with Meter(torch.device("cpu")) as large:
        torch.ones(2**26).sum()
    assert large.peak - small.peak == pytest.approx(2**28, rel=0.1)
