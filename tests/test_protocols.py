"""Each perplexity protocol against its definition with full logits, the harness, the loop of the transformers documentation."""

import math

import pytest
import torch
from test_evaluation import ids, naive_nll, tiny
from tiny import needed_by, save_tiny
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_posenc
from hf_posenc.evaluation import CorpusError, Document, Interrupted, KeyTokens, embedded_corpus, perplexity
from hf_posenc.evaluation.perplexity.protocols import Window
from hf_posenc.evaluation.perplexity.run import batches


@pytest.fixture(scope="module")
def model():
    return tiny(max_position_embeddings=64)


def pooled(parts):
    """Mean and number of nats in a list of tensors."""
    joined = torch.cat(parts)
    return joined.double().mean().item(), len(joined)


def found(score):
    return pytest.approx(score.nats, abs=1e-5), score.tokens_scored


def documentation_loop(model, tokens, max_length, stride):
    """Sliding windows as the transformers documentation runs them, with full logits; the nats are kept instead of the window means."""
    kept, previous_end = [], 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + max_length, len(tokens))
        labels = tokens[begin:end].clone()
        labels[: -(end - previous_end)] = -100
        with torch.no_grad():
            logits = model(input_ids=tokens[None, begin:end]).logits[0, :-1].float()
        nll = F.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="none")
        kept.append(nll[labels[1:] != -100])
        previous_end = end
        if end == len(tokens):
            break
    return kept


@pytest.mark.parametrize(("length", "stride", "total"), [(32, 8, 100), (32, 12, 101), (64, 63, 200), (64, 5, 64)])
def test_sliding_is_the_loop_of_the_documentation_weighted_by_token(model, length, stride, total):
    tokens = ids(total)
    expected = pooled(documentation_loop(model, tokens, length, stride))
    result = perplexity(model, tokens, lengths=[length], protocol="sliding", stride=stride)
    assert expected == found(result.scores[0])
    assert expected[1] == total - 1, "every token but the first, once"


def test_the_output_layer_sees_only_the_tokens_that_are_scored(model):
    seen = []
    handle = model.get_output_embeddings().register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    perplexity(model, ids(100), lengths=[32], protocol="sliding", stride=8)
    handle.remove()
    assert sum(seen) == 99 + 2 * 8  # 8 for the model itself and for us, to compare the two


def test_sliding_all_scores_every_token_of_every_full_window(model):
    tokens = ids(100)
    expected = pooled([naive_nll(model, tokens[start : start + 32]) for start in range(0, 69, 10)])
    assert expected == found(perplexity(model, tokens, lengths=[32], protocol="sliding_all", stride=10).scores[0])


def test_fixed_target_scores_the_same_tokens_at_every_length(model):
    tokens = ids(100)
    result = perplexity(model, tokens, lengths=[96, 16, 40], protocol="fixed_target", target=8)
    for score in result.scores:
        expected = naive_nll(model, tokens[96 - score.length : 96])[-8:]
        assert pooled([expected]) == found(score)


def test_offset_places_the_passage_where_it_is_asked(model):
    tokens = ids(100)
    result = perplexity(model, tokens, lengths=[16, 40, 5000], protocol="offset", target=16)
    assert [score.tokens_scored for score in result.scores] == [15, 15, 15]
    assert result.scores[0].nats == pytest.approx(result.scores[2].nats, abs=1e-5), "stock RoPE is relative"
    gpt2 = tiny("gpt2")
    result = perplexity(gpt2, tokens, lengths=[16, 40], protocol="offset", target=16)
    with torch.no_grad():
        logits = gpt2(input_ids=tokens[None, :16], position_ids=torch.arange(24, 40)[None]).logits[0, :-1].float()
    assert pooled([F.cross_entropy(logits, tokens[1:16], reduction="none")]) == found(result.scores[1])
    assert abs(result.scores[0].nats - result.scores[1].nats) > 1e-3, "a learned table is not"


@pytest.mark.cover("encoding_kind", name=[name for name in hf_posenc.list_encodings() if hf_posenc.describe(name).relative])
def test_offset_does_not_move_a_relative_encoding(name):
    model, tokens = tiny(dtype=torch.float32, max_position_embeddings=64), ids(32)
    options = needed_by(name) or ({"theta": 500.0} if "theta" in hf_posenc.describe(name).options else {})
    result = perplexity(model, tokens, lengths=[32, 9000], encodings={name: options}, protocol="offset", target=32)[name]
    assert result.scores[0].nats == pytest.approx(result.scores[1].nats, abs=2e-3)


@pytest.mark.parametrize("length", [16, 40])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_disjoint_is_the_rolling_loglikelihood_of_the_harness(family, length, tmp_path):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    folder = save_tiny(tmp_path, family)
    model, tokenizer, text = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), embedded_corpus()[:150]
    harness = huggingface.HFLM(pretrained=model, tokenizer=tokenizer, max_length=length, batch_size=1, device="cpu")
    (loglikelihood,) = harness.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)
    result = perplexity(model, tokenizer, text, lengths=[length], protocol="disjoint", bos="always").scores[0]
    assert result.tokens_scored == len(text.encode())
    assert result.nats * result.tokens_scored == pytest.approx(-loglikelihood, abs=1e-2)
    assert result.bits_per_byte == pytest.approx(-loglikelihood / len(text.encode()) / math.log(2), rel=1e-4)


def past_native(name):
    """Lengths past the native 64 tokens, for every encoding that is defined there."""
    return [16, 48, 96] if hf_posenc.describe(name).any_length else [16, 48]


@pytest.mark.cover("encoding_kind")
def test_decoded_and_passes_through_the_cache_equal_prefix(name):
    model, tokens, lengths = tiny(dtype=torch.float32, max_position_embeddings=64), ids(96), past_native(name)
    with hf_posenc.patched(model, name, **needed_by(name)):
        one = perplexity(model, tokens, lengths=lengths)
        decoded = perplexity(model, tokens, lengths=lengths, protocol="decoded")
        passes = perplexity(model, tokens, lengths=lengths, pass_tokens=20)
    assert (one.cache, decoded.cache, passes.cache) == (False, True, True)
    assert one.encoding == decoded.encoding == name
    for expected, step, chunk in zip(one.scores, decoded.scores, passes.scores, strict=True):
        assert (step.nats, chunk.nats) == pytest.approx((expected.nats, expected.nats), abs=1e-4)


def test_decoded_shows_that_stock_dynamic_ntk_is_two_models():
    rope = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}
    model, tokens = tiny(max_position_embeddings=32, rope_parameters=rope), ids(128)
    one, decoded = (perplexity(model, tokens, lengths=[16, 128], protocol=protocol) for protocol in ("prefix", "decoded"))
    assert one.scores[0].nats == pytest.approx(decoded.scores[0].nats, abs=1e-5), "within the native length they agree"
    assert abs(one.scores[1].nats - decoded.scores[1].nats) > 1e-3
    with pytest.raises(ValueError, match="pass_tokens= is not exact for this model"):
        perplexity(model, tokens, lengths=[128], pass_tokens=20)


@pytest.mark.parametrize("protocol", ["sliding", "sliding_all", "disjoint"])
def test_windows_that_run_together_give_the_same_numbers(model, protocol):
    stride = {} if protocol == "disjoint" else {"stride": 7}
    together, alone = (perplexity(model, ids(120), lengths=[16], protocol=protocol, batch_tokens=n, **stride).scores for n in (8192, 1))
    assert together[0].nats == pytest.approx(alone[0].nats, abs=1e-6)


def test_a_batch_holds_windows_of_one_shape_up_to_the_budget():
    windows = [Window(at, at + 10, at + 5, at + 10) for at in range(0, 50, 5)] + [Window(50, 57, 55, 57)]
    assert [len(batch) for batch in batches(windows, 40)] == [4, 4, 2, 1]


def test_key_tokens_are_those_that_a_long_context_helps():
    """A model that copies what followed the same token before: the second half of a repeated sequence is predictable, the first is not."""
    model = tiny(max_position_embeddings=64)
    tokens = torch.cat([ids(40), ids(40, seed=2), ids(40)])
    keys = KeyTokens(long=48, short=12, stride=4, alpha=0.5, beta=-9.0)
    result = perplexity(model, tokens, lengths=[64, 120], encodings={"stock": {}, "nope": {}}, key_tokens=keys)
    long, short = (torch.cat(documentation_loop(model, tokens, window, stride)) for window, stride in ((48, 12), (16, 4)))
    expected = torch.cat([torch.tensor([False]), (short - long > 0.5) & (-long > -9.0)])
    assert 0 < expected.sum() < 60
    for name, measured in result.items():
        with hf_posenc.patched(model, name) if name != "stock" else torch.no_grad():
            nll = naive_nll(model, tokens)
        score = measured.scores[-1]
        assert score.key_tokens == expected.sum()
        assert score.key_nats == pytest.approx(nll[expected[1:]].double().mean().item(), abs=1e-5)
        assert score.longppl == pytest.approx(math.exp(score.key_nats))
    assert (result["stock"].key_tokens["long"], result["stock"].key_tokens["evaluator"]) == (48, "stock")


def test_the_stock_model_chooses_the_key_tokens():
    model = hf_posenc.patch(tiny(max_position_embeddings=64), "alibi")
    with pytest.raises(ValueError, match="chosen by the stock model"):
        perplexity(model, ids(100), lengths=[64], key_tokens=KeyTokens(short=16, stride=4))
    with pytest.raises(ValueError, match=r"short \+ stride < long, got 60, 15 and 64"):
        perplexity(hf_posenc.unpatch(model), ids(100), lengths=[64], key_tokens=KeyTokens(short=60))


def test_several_encodings_on_one_model_leave_it_as_it_was(model):
    tokens = ids(100)
    before = hf_posenc.inspect(model).fingerprint
    results = perplexity(model, tokens, lengths=[32, 96], encodings={"stock": {}, "yarn": {"factor": 2.0}, "alibi": {}})
    assert hf_posenc.inspect(model).fingerprint == before == results["stock"].fingerprint
    assert len({result.fingerprint for result in results.values()}) == 3
    hf_posenc.patch(model, "yarn", factor=2.0)
    assert pooled([naive_nll(model, tokens[:96])]) == found(results["yarn"].scores[1])
    hf_posenc.unpatch(model)


def test_a_path_brings_its_tokenizer(tmp_path):
    folder, text = save_tiny(tmp_path), embedded_corpus()[:100]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    result = hf_posenc.perplexity(str(folder), None, [{"text": text}], lengths=[32])
    assert result.scores[0].nats == pytest.approx(perplexity(model, tokenizer, text, lengths=[32]).scores[0].nats, abs=1e-6)
    assert result.tokenizer == str(folder)


def test_documents_are_read_as_a_stream(model):
    read = []

    def rows():
        for index in range(1000):
            read.append(index)
            yield ids(10 if index % 2 else 40, seed=index)

    class Stream:
        def __iter__(self):
            return rows()

    result = perplexity(model, Stream(), lengths=[32], count=3)
    assert len(result.documents) == 3 and len(result.skipped) == 2
    assert max(read) == 4, "no further than the third that is long enough"


def test_documents_can_be_cut(model):
    result = perplexity(model, ids(500), lengths=[32], protocol="disjoint", max_tokens=65)
    assert result.documents[0]["tokens"] == 65 and result.scores[0].tokens_scored == 64


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"protocol": "slidng"}, "Did you mean 'sliding'"),
        ({"stride": 8}, "protocol 'prefix' has no option 'stride'; its options are: none"),
        ({"protocol": "sliding", "target": 8}, "its options are: stride"),
        ({"protocol": "sliding", "stride": 0}, "whole number of at least 1, got 0"),
        ({"protocol": "sliding", "stride": 32}, "leaves the first of its tokens without context"),
        ({"protocol": "fixed_target", "target": 32}, "need lengths above 32, got 32"),
        ({"protocol": "offset", "target": 33}, "cannot end at position 32"),
        ({"encodings": ["yarm"]}, "Did you mean 'yarn'"),
        ({"lengths": [1]}, "at least 2 tokens"),
    ],
)
def test_mistakes_are_found_before_the_model_runs(model, how, message):
    ran = []
    handle = model.register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError, match=message):
        perplexity(model, ids(100), **{"lengths": [32], **how})
    handle.remove()
    assert not ran


def test_an_encoding_that_changes_nothing_is_not_measured():
    with pytest.raises(ValueError, match="rope: the patched model has the same live encoding as the stock model"):
        perplexity(tiny(dtype=torch.float32), ids(100), lengths=[32], encodings=["nope", "rope"])


def test_what_is_measured_must_be_said(model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(save_tiny(tmp_path))
    with pytest.raises(ValueError, match="a tokenizer needs texts"):
        perplexity(model, tokenizer)
    with pytest.raises(ValueError, match="nothing to measure"):
        perplexity(model)
    with pytest.raises(ValueError, match="take their place"):
        perplexity(model, ids(10), "text")
    with pytest.raises(CorpusError, match="the longest of 0 documents"):
        perplexity(model, [], lengths=[32])
    small = tiny()
    small.resize_token_embeddings(100)
    with pytest.raises(ValueError, match="it is not the tokenizer of this model"):
        perplexity(small, tokenizer, "text", lengths=[4])
    with pytest.raises(ValueError, match=r"document 0 has the token \d+, and the model has embeddings of 100"):
        perplexity(small, ids(50), lengths=[4])


def test_a_journal_belongs_to_its_text_and_its_settings(model, tmp_path):
    """An interrupted call must not report documents of another one."""
    texts = [[ids(40, seed), ids(40, seed + 1), ids(40, seed + 2)] for seed in (10, 20)]

    def stopped(at):
        seen = []

        def progress(tokens):
            seen.append(tokens)
            if len(seen) > at * 2:  # two layers
                raise KeyboardInterrupt

        return progress

    for documents, done in ((texts[0], 2), (texts[1], 1)):
        with pytest.raises(Interrupted) as caught:
            perplexity(model, documents, lengths=[32], journal=tmp_path, progress=stopped(done))
        assert [each["sha256"] for each in caught.value.result.documents] == [Document("", each).sha256 for each in documents[:done]]
        assert not caught.value.result.complete
    whole = perplexity(model, texts[0], lengths=[32])
    ran = []
    resumed = perplexity(model, texts[0], lengths=[32], journal=tmp_path, progress=ran.append)
    assert resumed.scores == whole.scores and resumed.complete
    assert ran[:2] == [32, 32], "the two that were finished count at once"
    assert sum(ran) == pytest.approx(96)
