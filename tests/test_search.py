"""Factors stay where the papers want them, begin as the encodings they are named for, and what is found is a stock checkpoint."""

import json
import math
import time
from contextlib import nullcontext
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import save_tiny, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_posenc
from hf_posenc.cli import main
from hf_posenc.encodings import Geometry, create
from hf_posenc.encodings.rotary.rope import is_fixed
from hf_posenc.evaluation.budget import Budget
from hf_posenc.evaluation.corpus import CorpusError, Document, embedded_corpus
from hf_posenc.evaluation.kept import Kept
from hf_posenc.evaluation.reach import is_length_dependent
from hf_posenc.evaluation.result import Interrupted
from hf_posenc.patching import patch_of
from hf_posenc.searching.evolution import Evolution
from hf_posenc.searching.found import FOUND, Found, Held
from hf_posenc.searching.space import METHODS, SEEDS, Space
from hf_posenc.searching.trials import Sample, Trials, halves, samples_of
from hf_posenc.searching.verb import Search, Spent
from hf_posenc.variants import read_plan

LENGTH = 128
TEXT = embedded_corpus()[: 6 * LENGTH]
SMOLLM2 = Geometry(hidden_size=576, num_heads=9, num_kv_heads=3, theta=100_000.0, max_positions=8192)
QUICK = {"population": 9, "iterations": 1, "texts": [TEXT]}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a model whose rotations matter, and its tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("small"))


@pytest.fixture
def loaded(small):
    return AutoModelForCausalLM.from_pretrained(small).eval(), AutoTokenizer.from_pretrained(small)


# -- the space ------------------------------------------------------------------------------------------------------------


def check(space, vector):
    """What the papers ask of a vector."""
    s, factors, c = space.stretch, vector.factors, vector.critical
    assert len(factors) == 32 and [*factors] == sorted(factors)
    low, high = (1.0, 1.25 * s) if space.method == "longrope" else (s, 2 * s)
    assert all(low <= factor <= high for factor in factors[c:])
    assert 1.0 <= vector.attention_factor <= 1 + 0.2 * math.log(s)
    if space.method == "longrope":
        assert c == 0
    else:  # 20 is ceil(32 log(8192 / 2 pi) / log(100000)), the first pair that does not come round within 8192 tokens
        assert 1 <= c <= 20 and 2 * math.pi * 1e5 ** (20 / 32) > 8192 > 2 * math.pi * 1e5 ** (19 / 32)
        assert factors[:c] == pytest.approx([factors[c] ** (k / c) for k in range(c)])


@settings(max_examples=25)
@given(method=st.sampled_from(METHODS), seed=st.integers(0, 10**6), s=st.sampled_from([1.5, 2, 4, 16]))
def test_mutation_and_crossover_keep_the_order_and_the_bounds(method, seed, s):
    space, chance = Space(SMOLLM2, round(8192 * s), method), Random(seed)
    vectors = [*space.seeds().values()]
    for vector in vectors:
        check(space, vector)
    for _ in range(20):
        one, other = chance.sample(vectors, 2)
        vectors += [space.mutated(one, chance), space.crossed(one, other, chance)]
        check(space, vectors[-2])
        check(space, vectors[-1])
        assert all(child in {*one.factors, *other.factors} for child in vectors[-1].factors[max(one.critical, other.critical) :])
    assert len({*vectors}) > 10


def test_mutations_lie_on_the_grid_and_reach_the_bounds():
    space, chance = Space(SMOLLM2, 16384), Random(0)
    vector, values = space.seeds()["linear"], set()
    for _ in range(300):
        vector = space.mutated(vector, chance)
        values.update(vector.factors)
    assert all(abs(100 * value - round(100 * value)) < 1e-9 for value in values) and {1.0, 2.5} <= values


def expected(name, s, theta=100_000.0, length=8192, pairs=32):
    """Frequencies and factor on cos and sin in float64, as the papers write them."""
    plain = [theta ** (-k / pairs) for k in range(pairs)]
    if name == "linear":
        return [f / s for f in plain], 1.0
    if name == "ntk":
        return [(theta * s ** (pairs / (pairs - 1))) ** (-k / pairs) for k in range(pairs)], 1.0
    if name == "longrope2":
        return [f / s ** min(k / 20, 1) for k, f in enumerate(plain)], math.sqrt(1 + math.log(s) / math.log(length))
    ends = [pairs * math.log(length / (2 * math.pi * turns)) / math.log(theta) for turns in (32, 1)]
    low, high = math.floor(ends[0]), math.ceil(ends[1])
    ramp = [min(max((k - low) / (high - low), 0), 1) for k in range(pairs)]
    return [f / s * r + f * (1 - r) for f, r in zip(plain, ramp, strict=True)], 0.1 * math.log(s) + 1


@pytest.mark.parametrize("s", [2.0, 2.5])
@pytest.mark.parametrize("name", SEEDS)
def test_seeds_are_the_encodings(name, s):
    """As close as a float32 can be to the formulas, and to what the encodings themselves have."""
    vector = Space(SMOLLM2, 16384).seeds()[name if s == 2 else f"{name}:factor=2.5"]
    found = create(FOUND, SMOLLM2, **vector.options(16384))
    frequencies, attention_factor = expected(name, s)
    assert found.inv_freq.tolist() == pytest.approx(frequencies, rel=5e-7)
    assert found.attention_factor == pytest.approx(attention_factor, rel=1e-12)
    own = create(name, SMOLLM2, factor=s)
    table = own.long_freq if name == "longrope2" else own.inv_freq
    assert found.attention_factor == own.attention_factor and ((found.inv_freq - table).abs() <= 2**-23 * table).all()


# -- the evolution --------------------------------------------------------------------------------------------------------


def planted(vector):
    """Nought at one vector within the bounds, which no seed has."""
    best = [1 + 1.2 * (k / 31) ** 3 for k in range(32)]
    return sum((a - b) ** 2 for a, b in zip(vector.factors, best, strict=True)) + (vector.attention_factor - 1.05) ** 2


def evolved(seed, iterations=50):
    space = Space(SMOLLM2, 16384)
    evolution = Evolution(space, planted, Random(seed), 16)
    evolution.run([*space.seeds().values()], iterations)
    return evolution


def test_the_search_nears_a_planted_optimum():
    evolution = evolved(0)
    seeds = [evolution.scores[vector] for vector in evolution.space.seeds().values()]
    assert evolution.scores[evolution.best(1)[0]] < 0.3 * min(seeds)
    assert len(evolution.scores) == 16 + 50 * 8


def test_chance_alone_decides_and_no_vector_is_measured_twice():
    assert [*evolved(3, 4).scores.items()] == [*evolved(3, 4).scores.items()]
    assert [*evolved(3, 4).scores] != [*evolved(4, 4).scores]
    asked = []
    evolution = Evolution(Space(SMOLLM2, 16384), lambda vector: asked.append(vector) or planted(vector), Random(0), 16)
    evolution.run([*evolution.space.seeds().values()], 3)
    assert len(asked) == len({*asked}) == len(evolution.scores)


def test_where_there_is_nothing_new_it_ends():
    class Still(Space):
        def mutated(self, vector, chance):
            return vector

    space = Still(SMOLLM2, 16384)
    evolution = Evolution(space, planted, Random(0), 500)
    evolution.run([*space.seeds().values()][:1], 2)
    assert len(evolution.scores) == 1


# -- on a model -----------------------------------------------------------------------------------------------------------


def nats_of(model, ids):
    """The mean nats of the predictions of a text."""
    logits = model(ids[None], use_cache=False).logits.log_softmax(-1)[0, :-1]
    return -logits.gather(-1, ids[1:, None]).mean().item()


@torch.no_grad()
def test_the_best_is_chosen_and_compared_on_other_text(loaded):
    model, tokenizer = loaded
    before = model(torch.arange(9)[None]).logits
    found = hf_posenc.search(model, tokenizer, LENGTH, budget=5, **QUICK)
    assert torch.equal(model(torch.arange(9)[None]).logits, before)
    assert found.measured == 9 + 4 and found.scores[FOUND] == min(found.scores.values()) and {*found.held} == {FOUND, *SEEDS}
    pieces = tokenizer(TEXT, return_tensors="pt").input_ids[0, : 6 * LENGTH].split(LENGTH)
    exec(found.line, {"hf_posenc": hf_posenc, "model": model})
    assert found.scores[FOUND] == pytest.approx(sum(nats_of(model, ids) for ids in pieces[:2]) / 2, rel=1e-5)
    assert found.held[FOUND].nats == pytest.approx(sum(nats_of(model, ids) for ids in pieces[2:]) / 4, rel=1e-5)
    hf_posenc.unpatch(model)
    with hf_posenc.patched(model, "yarn", factor=2.0):
        assert found.held["yarn"].nats == pytest.approx(sum(nats_of(model, ids) for ids in pieces[2:]) / 4, rel=1e-5)
        assert found.scores["yarn"] == pytest.approx(sum(nats_of(model, ids) for ids in pieces[:2]) / 2, rel=1e-5)


def test_the_same_seed_finds_the_same_and_what_was_measured_is_not_measured_again(loaded, tmp_path):
    said = []

    def say(line):
        said.append(line)
        if len(said) == 10:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        hf_posenc.search(*loaded, LENGTH, budget=5, kept=tmp_path, say=say, **QUICK)
    assert stopped.value.result.measured == 9 and len([*tmp_path.rglob("*.json")]) == 10
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    resumed = hf_posenc.search(*loaded, LENGTH, budget=5, kept=tmp_path, **QUICK)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert times.items() <= after.items() and len(after) == resumed.measured + len(resumed.held)
    alone, other = (hf_posenc.search(*loaded, LENGTH, budget=5, seed=seed, **QUICK) for seed in (0, 1))
    assert (alone.options, alone.scores, alone.held) == (resumed.options, resumed.scores, resumed.held)
    assert other.options != alone.options or other.scores != alone.scores


def test_needles_are_scored_by_their_answers(loaded):
    model, tokenizer = loaded
    found = hf_posenc.search(
        model, tokenizer, 768, budget=5, objective="needles", method="longrope2", population=1, iterations=0, samples=1, texts=[TEXT * 4]
    )
    read, held = samples_of(tokenizer, [TEXT * 4], 768, 1, "needles", 0)
    assert len(read.prompts) == 1 and len(held.prompts) == 4 and read.prompts[0].keys != held.prompts[0].keys

    def nats(prompts):
        """Of the digits of all numbers alone."""
        logits = [model(prompt.input_ids[None]).logits.log_softmax(-1)[0] for prompt in prompts]
        each = [
            -logits[at][place - 1, prompt.input_ids[place]]
            for at, prompt in enumerate(prompts)
            for part in prompt.answers
            for place in part
        ]
        assert len(each) == 4 * 5 * len(prompts)
        return sum(each).item() / len(each)

    with torch.no_grad(), hf_posenc.patched(model, "yarn", factor=12.0):
        assert found.held["yarn"].answer == pytest.approx(nats(held.prompts), rel=1e-5)
    with torch.no_grad(), hf_posenc.patched(model, FOUND, **found.options):
        assert found.scores[FOUND] == pytest.approx(nats(read.prompts), rel=1e-5)
    assert found.gain == found.held[found.best_other].answer - found.held[FOUND].answer


def test_without_time_nothing_is_begun(loaded):
    found = hf_posenc.search(*loaded, LENGTH, budget=1e-9, say=pytest.fail, **QUICK)
    assert not found.options and not found.held and "give it more time" in str(found)
    with pytest.raises(ValueError, match="more time"):
        found.save_options("nowhere.json")


def test_the_comparison_has_its_time(loaded):
    """A text takes a minute: of ten, the first two vectors may have all, later ones leave five for what was found and four encodings."""
    space = Space(patch_of(loaded[0]).geometry(0), LENGTH)
    sample = Sample([Document("text", torch.arange(LENGTH))], None, [])
    trials = Trials(*loaded, LENGTH, 64, sample, sample, Kept.of(None), pace=60.0)
    found = Found("m", 64, LENGTH, "longrope", "perplexity", 0, 16, 0, 10.0)
    searching = Search(space, space.seeds(), trials, Budget(10.0), found)
    for measured, passed, fits in ((0, 530, True), (1, 530, True), (1, 550, False), (2, 230, True), (2, 250, False)):
        searching.evolution.scores = dict.fromkeys([*space.seeds().values()][:measured], 1.0)
        searching.clock.started, trials.pace = time.monotonic() - passed, 60.0
        with nullcontext() if fits else pytest.raises(Spent):
            searching.measure([*space.seeds().values()][-1])


def test_pieces_that_are_held_out_are_not_searched_on(loaded):
    for tokens, samples in ((2, 5), (3, 1), (9, 2)):
        read, held = halves(loaded[1], [TEXT[: 100 * tokens]], 100, samples)
        assert len(read) == min(samples, tokens - 1) and 1 <= len(held) <= 4 and not {*map(str, read)} & {*map(str, held)}
    with pytest.raises(CorpusError, match="2 x 100"):
        halves(loaded[1], [TEXT[:150]], 100, 1)


@torch.no_grad()
def test_what_is_found_is_a_stock_checkpoint(loaded, tmp_path):
    """Saved, and read by transformers as it is: in one pass, and token by token across the native context."""
    model, _ = loaded
    options = Space(patch_of(model).geometry(0), LENGTH).seeds()["yarn"].options(LENGTH)
    hf_posenc.patch(model, FOUND, **options)
    model.save_pretrained(tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())
    assert entries["model_type"] == "llama" and entries["rope_parameters"]["rope_type"] == "longrope"
    stock, ids = AutoModelForCausalLM.from_pretrained(tmp_path).eval(), torch.arange(100)[None]
    assert not patch_of(stock).placements
    assert torch.equal(stock(ids).logits, model(ids).logits)
    cache = stock(ids[:, :60], use_cache=True).past_key_values
    for at in range(60, 70):
        step = stock(ids[:, at : at + 1], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(step[0, -1], model(ids[:, :70]).logits[0, -1], rtol=1e-4, atol=1e-4)
    for engine in ("transformers", "vllm", "sglang", "llama.cpp", "mlx"):
        hf_posenc.export(model, engine)
        hf_posenc.export(stock, engine)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gptj", "phi3", "glm"])
def test_factors_that_are_equal_are_linear_interpolation(family):
    """Whichever dimensions a family pairs, and however many it turns."""
    model, ids = tiny_model(family), torch.arange(1, 40)[None]
    pairs = patch_of(model).geometry(0).rotary_dim // 2
    with hf_posenc.patched(model, "linear", factor=4.0):
        expected = model(ids).logits
    assert not torch.allclose(model(ids[:, :10]).logits, expected[:, :10], atol=1e-2)
    with hf_posenc.patched(model, FOUND, factor=4.0, short_factor=[4.0] * pairs, long_factor=[4.0] * pairs, attention_factor=1.0):
        assert torch.equal(model(ids).logits, expected)


def test_one_table_shows_no_lengths(loaded):
    """What stock transformers makes of it is not taken for a RoPE that follows the length of the text."""
    model, _ = loaded
    options = Space(patch_of(model).geometry(0), LENGTH).seeds()["ntk"].options(LENGTH)
    with hf_posenc.patched(model, FOUND, **options):
        assert model.config.rope_parameters["rope_type"] == "longrope" and not is_length_dependent(model)
    with hf_posenc.patched(model, FOUND, target_length=LENGTH, long_factor=options["long_factor"]):
        assert not patch_of(model).stock
    stock = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0], "long_factor": [2.0]}
    assert not is_fixed(stock) and is_fixed(stock | {"long_factor": [1.0]}) and not is_fixed({"rope_type": "dynamic"})


# -- what is refused, and the command -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 16}, "beyond the native context"),
        ({"budget": 0}, "minutes above 0"),
        ({"texts": ["too short"]}, "tokens"),
        ({"method": "longrope3"}, "longrope, longrope2"),
        ({"objective": "bleu"}, "perplexity, needles"),
        ({"population": 0}, "population"),
        ({"samples": 0}, "samples"),
        ({"objective": "needles"}, "too short: the words around the filler"),
    ],
)
def test_mistakes_are_found_first(loaded, change, message, tmp_path):
    asked = {"length": LENGTH, **QUICK, **change}
    with pytest.raises(ValueError, match=message):
        hf_posenc.search(*loaded, asked.pop("length"), say=pytest.fail, kept=tmp_path, **asked)
    assert not [*tmp_path.iterdir()] and not patch_of(loaded[0]).placements


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "already scales its RoPE"),
        ({"model_type": "gpt2"}, "no rotation of its own"),
        ({"model_type": "gemma3_text"}, "several kinds"),
    ],
)
def test_models_without_one_plain_rotation_are_refused(loaded, changes, message):
    model = tiny_model(changes.pop("model_type", "llama"), vocab_size=300, **changes)
    with pytest.raises(ValueError, match=message):
        hf_posenc.search(model, loaded[1], LENGTH, say=pytest.fail, **QUICK)


def test_a_patched_model_is_refused(loaded):
    hf_posenc.patch(loaded[0], "alibi")
    with pytest.raises(ValueError, match="unpatch"):
        hf_posenc.search(*loaded, LENGTH)


def test_the_gain_is_told_and_that_there_is_none():
    held = {FOUND: Held(2.0, 2.0), "yarn": Held(2.1, 1.0), "ntk": Held(2.2, 3.0)}
    found = Found("m", 64, 128, "longrope", "perplexity", 0, 16, 2, 1.0, options={"target_length": 128}, held=held)
    assert found.best_other == "yarn" and found.gain == pytest.approx(0.1) and "0.9048 x that of yarn" in str(found)
    found.held["yarn"] = Held(1.9, 1.0)
    assert "use yarn" in str(found)


def test_the_command_and_the_file_that_every_other_takes(small, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    words = [str(small), "--length", str(LENGTH), "--population", "9", "--iterations", "1", "--text", str(text)]
    assert main(["search", *words, "--output_dir", str(tmp_path / "out"), "--device", "cpu"]) == 0
    shown, file = capsys.readouterr().out, tmp_path / "out" / "longrope.json"
    assert "hf_posenc.patch(model, " in shown and f"--encoding longrope:{file}" in shown
    found = Found.load(tmp_path / "out" / "search.json")
    assert json.loads(file.read_text()) == found.options == read_plan([f"{FOUND}:{file}"])[f"{FOUND}:{file}"]
    assert read_plan([f"{FOUND}:{file},layers=0"])[f"{FOUND}:{file},layers=0"]["layers"] == 0
    output = ["--output_dir", str(tmp_path / "perplexity")]
    assert (
        main(["perplexity", "--model", str(small), "--text", str(text), "--lengths", "128", "--encoding", f"{FOUND}:{file}", *output]) == 0
    )
    (result,) = (tmp_path / "perplexity").glob("*.json")
    assert json.loads(result.read_text())["options"] == found.options
    words = ["--to", "transformers", "--encoding", f"{FOUND}:{file}", "--output", str(tmp_path / "stock")]
    assert main(["export", str(small), *words]) == 0
    stock = json.loads((tmp_path / "stock" / "config.json").read_text())
    assert stock["rope_parameters"]["long_factor"] == found.options["long_factor"] and stock["max_position_embeddings"] == LENGTH
    file.write_text('{"long_factors": [1.0]}')
    with pytest.raises(ValueError, match="unknown settings: long_factors"):
        read_plan([f"{FOUND}:{file}"])
    with pytest.raises(OSError, match="nowhere"):
        read_plan([f"{FOUND}:nowhere.json"])
