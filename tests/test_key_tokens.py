"""LongPPL: key tokens by an evaluator with any tokenizer, against the formula on full logits, token by token."""

import json
import weakref

import numpy as np
import pytest
import torch
from tiny import save_tiny, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import hf_posenc
from hf_posenc.evaluation import Document, Evaluator, KeyTokens, embedded_corpus, encode
from hf_posenc.evaluation.corpus import Text
from hf_posenc.evaluation.perplexity import cli
from hf_posenc.evaluation.perplexity.key_tokens import carried

RULE = KeyTokens(short=16, stride=5, alpha=0.02, beta=-9.0)
TEXT = embedded_corpus()[1000:1200] + " ünïcödé 漢字 " + embedded_corpus()[1000:1100]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Reads bytes."""
    return save_tiny(tmp_path_factory.mktemp("measured"))


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    """Reads other tokens: pairs of bytes where it can, with BOS, and a longer context."""
    folder = tmp_path_factory.mktemp("evaluator")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in "abcdefghijklmnopqrstuvwxyzĠ" for b in "aeiounrst"]
    words = {word: index for index, word in enumerate(["<s>", *alphabet, *(a + b for a, b in pairs)])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)
    tiny_model("llama", seed=3, vocab_size=len(words), max_position_embeddings=512).save_pretrained(folder)
    return folder


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def nats(model, ids, at):
    """Of token `at` of ids, given all before it."""
    return -model(ids[None, :at]).logits[0, -1].double().log_softmax(-1)[ids[at]].item()


def expected(model, tokenizer, rule):
    """Key tokens one by one, and their text: intervals of characters."""
    encoded = tokenizer(TEXT, return_offsets_mapping=True, return_tensors="pt")
    ids, spans = encoded.input_ids[0], encoded.offset_mapping[0].tolist()
    assert ids[0] == tokenizer.bos_token_id and spans[0] == [0, 0]
    keys = []
    for at in range(rule.short, len(ids)):
        start = (at - rule.short) // rule.stride * rule.stride
        long, short = nats(model, ids, at), nats(model, ids[start:], at - start)
        if short - long > rule.alpha and -long > rule.beta:
            keys.append(at)
    return keys, [spans[key] for key in keys]


def test_the_tokens_of_another_evaluator_are_found_by_their_text(measured, evaluator):
    model, tokenizer = loaded(measured)
    judge, other = loaded(evaluator)
    result = hf_posenc.perplexity(model, tokenizer, [TEXT], lengths=[len(TEXT.encode())], evaluator=(judge, other), key_tokens=RULE)
    keys, intervals = expected(judge, other, RULE)
    covered = set().union(*(range(*interval) for interval in intervals))
    encoded = tokenizer(TEXT, return_offsets_mapping=True)
    chosen = [at for at, span in enumerate(encoded.offset_mapping) if at and set(range(*span)) <= covered]
    score = result.scores[0]
    assert 10 < len(keys) < len(chosen) < len(encoded.input_ids) / 2
    assert score.key_tokens == len(chosen)
    ids = torch.tensor(encoded.input_ids)
    assert score.key_nats == pytest.approx(sum(nats(model, ids, at) for at in chosen) / len(chosen), rel=1e-5)


def test_a_token_is_key_where_it_lies_within_neighbouring_key_tokens():
    """abc|de|fgh, of which abc and de touch; a token of "cd" lies in both, one of "ef" reaches out."""
    read = Document("", torch.arange(3), "abcdefgh", ((0, 3), (3, 5), (5, 8)))
    document = Document("", torch.arange(5), "abcdefgh", ((0, 2), (2, 4), (4, 6), (6, 7), (7, 8)))
    for keys, wanted in (((1, 1, 0), (1, 1, 0, 0, 0)), ((0, 1, 0), (0,) * 5), ((1, 0, 1), (1, 0, 0, 1, 1)), ((0, 0, 0), (0,) * 5)):
        assert carried(torch.tensor(keys).bool(), read, document).tolist() == [bool(key) for key in wanted]


def test_two_tokens_of_one_character_are_both_key():
    read = Document("", torch.arange(3), "a漢b", ((0, 1), (1, 2), (2, 3)))
    document = Document("", torch.arange(5), "a漢b", ((0, 1), (1, 2), (1, 2), (1, 2), (2, 3)))
    assert carried(torch.tensor([False, True, False]), read, document).tolist() == [False, True, True, True, False]


def test_a_part_of_a_document_has_its_text(evaluator):
    document = encode(AutoTokenizer.from_pretrained(evaluator), Text("d", TEXT))
    part = document.part(7, 40)
    assert part.text in TEXT and part.text == TEXT[document.spans[7][0] : document.spans[39][1]]
    assert [part.text[a:b] for a, b in part.spans] == [TEXT[a:b] for a, b in document.spans[7:40]]
    assert torch.equal(document.head(9).input_ids, document.input_ids[:9]) and document.head(9).byte_ends == document.byte_ends[:9]


def test_a_named_evaluator_is_there_for_a_block_and_what_it_found_for_longer(measured, evaluator, tmp_path):
    document = encode(AutoTokenizer.from_pretrained(measured), Text("d", TEXT))
    with Evaluator.of(evaluator, RULE, tmp_path) as first:
        keys = first.find(document)
        there = weakref.ref(first.model)
        assert there() is not None
    assert there() is None, "the weights are gone"
    assert torch.equal(keys, Evaluator.of(loaded(evaluator), RULE).find(document))
    again = Evaluator.of(evaluator, RULE, tmp_path)
    again.load = pytest.fail
    assert torch.equal(again.find(document), keys) and keys.any()
    other = Evaluator.of(evaluator, KeyTokens(short=20, stride=5), tmp_path)
    other.load = lambda: (_ for _ in ()).throw(KeyError("loaded"))
    with pytest.raises(KeyError, match="loaded"):
        other.find(document)


def test_an_evaluator_reads_what_is_scored_and_no_more(measured, evaluator):
    model, tokenizer = loaded(measured)
    read = []
    result = hf_posenc.perplexity(
        model, tokenizer, [TEXT], lengths=[80], evaluator=loaded(evaluator), key_tokens=RULE, progress=read.append
    )
    document = encode(AutoTokenizer.from_pretrained(evaluator), Text("d", TEXT[:80]))
    windows = sum(len(window) for protocol, length in RULE.of(512).windows for window in protocol.windows(len(document), length, length))
    assert sum(read) == pytest.approx(windows + 80) and result.key_tokens["long"] == 512


def test_the_end_of_a_text_alone(measured):
    """As if the text began there."""
    model, tokenizer = loaded(measured)
    document = encode(tokenizer, Text("d", TEXT))
    rule = KeyTokens(long=64, short=16, stride=5, alpha=0.02, beta=-9.0)
    keys = KeyTokens(**{**vars(rule), "last": 60}).find(model, document)
    assert keys.any() and not keys[:-60].any()
    assert torch.equal(keys[-60:], rule.find(model, document.part(len(document) - 60, len(document))))


def test_defaults_are_the_published_ones_where_they_fit():
    for context, short, stride in ((131072, 4096, 1024), (8192, 2048, 512), (64, 16, 4)):
        rule = KeyTokens().of(context)
        assert (rule.long, rule.short, rule.stride, rule.alpha, rule.beta) == (context, short, stride, 2.0, -2.0)


def test_an_evaluator_whose_configuration_has_no_length_asks_for_one():
    model = tiny_model("bloom")
    with pytest.raises(ValueError, match=r"KeyTokens\(long=...\)"):
        Evaluator.stock(model)
    assert Evaluator.stock(model, KeyTokens(long=64)).rule.short == 16


def test_an_evaluator_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="owner/no-such-model"):
        Evaluator.of("owner/no-such-model")


def test_a_rule_that_nothing_would_go_by_is_refused(measured, tmp_path, capsys):
    model, tokenizer = loaded(measured)
    with pytest.raises(ValueError, match="give the KeyTokens to it"):
        hf_posenc.perplexity(model, tokenizer, [TEXT], lengths=[60], evaluator=Evaluator.stock(model, RULE), key_tokens=RULE)
    assert cli.main(["--model", str(measured), "--key_short", "16", "--output_dir", str(tmp_path / "out")]) == 1
    assert "--key_short is of key tokens" in capsys.readouterr().err


def test_tokens_without_text_are_refused(measured, evaluator):
    model, _ = loaded(measured)
    with pytest.raises(ValueError, match="document 0 as text"):
        hf_posenc.perplexity(model, torch.arange(60), lengths=[60], evaluator=str(evaluator))


def test_the_command_has_the_evaluator_read_first(measured, evaluator, tmp_path, capsys):
    def run(*more):
        words = ["--model", str(measured), "--lengths", "64", "256", "--device", "cpu", "--output_dir", str(tmp_path)]
        assert cli.main([*words, "--evaluator", str(evaluator), "--key_short", "16", *more]) == 0
        return capsys.readouterr().out

    shown = run("--encoding", "stock", "nope")
    assert "LongPPL" in shown and str(evaluator) in shown.replace("\n", "")
    (kept,) = (tmp_path / cli.KEYS).glob("*.npy")
    when = kept.stat().st_mtime_ns
    (stock,), (nope,) = ([json.loads(file.read_text()) for file in tmp_path.glob(f"{name}-*.json")] for name in ("stock", "nope"))
    assert stock["key_tokens"] == nope["key_tokens"] and stock["key_tokens"]["evaluator"] == str(evaluator)
    assert stock["scores"][-1]["key_tokens"] == nope["scores"][-1]["key_tokens"] and len(np.load(kept)) > 64
    run("--encoding", "alibi")
    assert [kept] == [*(tmp_path / cli.KEYS).iterdir()] and kept.stat().st_mtime_ns == when
