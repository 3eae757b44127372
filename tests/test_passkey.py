"""The passkey task: what a prompt is, how it is scored, and what survives an interruption."""

import json
import math
import re

import pytest
import torch
from tiny import save_tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import hf_posenc
from hf_posenc.evaluation import Interrupted
from hf_posenc.evaluation.retrieval import PasskeyTask, Prompts, RetrievalResult, passkey
from hf_posenc.evaluation.retrieval.grid import Grid
from hf_posenc.evaluation.retrieval.trial import Examiner
from hf_posenc.evaluation.tasks.passkey import NAMES
from hf_posenc.evaluation.token_nll import find_head

TASKS = [
    {},
    {"digits": 7, "seed": 3},
    {"needles": 3},
    {"needles": 3, "ask": "all"},
    {"distractors": 4},
    {"needles": 2, "ask": "all", "distractors": 3},
    {"chat": True},
]
DEPTHS = [0.0, 0.3, 1.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def by_byte(folder):
    """Every byte is a token."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}<user>{{ m['content'] | trim }}</user>{% endfor %}<assistant>"
    return tokenizer


@pytest.fixture(scope="module")
def by_pair():
    """Byte-level BPE with merged words and merged digits, and a BOS token that the tokenizer adds itself."""
    from tokenizers.processors import TemplateProcessing

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    text = ["The pass key is the pass key. Remember it. The grass is green. The sky is blue.", *(str(n) for n in range(10000, 12000, 7))]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([*text, *(f" {n}" for n in range(50000, 60000, 7))], trainer)
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    tokenizer.chat_template = "<s>{% for m in messages %}[user] {{ m['content'] }} {% endfor %}[assistant] "
    return tokenizer


@pytest.fixture(params=["by_byte", "by_pair"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


@pytest.mark.parametrize("task", [*TASKS, {"filler": "essay"}], ids=str)
def test_every_prompt_has_exactly_as_many_tokens_as_asked_for(tokenizer, task):
    prompts = Prompts(PasskeyTask(**task), tokenizer)
    shortest = max(prompts.shortest(0, depth, trial) for depth in DEPTHS for trial in range(2))
    for length in (shortest, shortest + 1, shortest + 37, 2000):
        for depth in DEPTHS:
            for trial in range(2):
                assert prompts.prompt(length, depth, trial).input_ids.shape == (length,)


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_the_answers_are_the_digits_of_the_keys_and_end_the_prompt(tokenizer, task):
    prompt = Prompts(PasskeyTask(**task), tokenizer).prompt(2000, 0.3, 1)
    digits = task.get("digits", 5)
    for answer, key in zip(prompt.answers, prompt.keys, strict=True):
        assert re.fullmatch(rf"[1-9]\d{{{digits - 1}}}", key)
        assert tokenizer.decode(prompt.input_ids[list(answer)]).strip() == key
        assert re.search(r"\d", tokenizer.decode(prompt.input_ids[[answer.start]]))  # no token that is only the space before the number
        assert tokenizer.decode(prompt.input_ids[: answer.start]).rstrip().endswith("is")
    assert prompt.answers[-1].stop == 2000
    assert len(prompt.keys) == (task.get("needles", 1) if task.get("ask") == "all" else 1)
    assert prompt.scored.tolist() == [at for answer in prompt.answers for at in answer]


def test_the_words_of_a_prompt(by_byte):
    """The text itself: a change of the words needs another `TEMPLATE`."""
    prompt = Prompts(PasskeyTask(), by_byte).prompt(400, 0.5, 0)
    text, (key,) = by_byte.decode(prompt.input_ids), prompt.keys
    head = (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
        "I will quiz you about the important information there."
    )
    needle = f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
    tail = f"\nWhat is the pass key? The pass key is {key}"
    assert text.startswith(head) and text.endswith(tail) and text.count(needle) == 1
    filler = text.removeprefix(head).removesuffix(tail).replace(needle, "")
    grass = " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    assert filler in grass * 9


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_the_needle_lies_at_its_depth(by_byte, depth):
    prompt = Prompts(PasskeyTask(distractors=2), by_byte).prompt(3000, depth, 0)
    text, (key,) = by_byte.decode(prompt.input_ids), prompt.keys
    hidden = r"\nThe [a-z ]+ is \d{5}\. Remember it\. \d{5} is the [a-z ]+\.\n"
    before, after = re.split(rf"\nThe pass key is {key}\. Remember it\. {key} is the pass key\.\n", text)
    before, after = re.sub(hidden, "", before), re.sub(hidden, "", after)
    around = len(text.split(" there.")[0] + " there."), len("\nWhat is the pass key? The pass key is 12345")
    assert len(before) - around[0] == pytest.approx(depth * (len(before) + len(after) - sum(around)), abs=1)


def test_a_prompt_follows_from_its_cell_alone(by_byte):
    """Neither the other cells nor the order in which they are asked for matter, and a trial, a length, a depth and a seed all do."""
    first, again = Prompts(PasskeyTask(), by_byte), Prompts(PasskeyTask(), by_byte)
    places = [(place.length, place.depth, place.index) for place in Grid.of([400, 500], [0.0, 0.5], 2)]
    forwards = {place: first.prompt(*place).sha256 for place in places}
    backwards = {place: again.prompt(*place).sha256 for place in reversed(places)}
    assert forwards == backwards and len(set(forwards.values())) == len(places)
    assert len({first.prompt(400, depth, trial).keys for depth in (0.0, 0.5) for trial in range(2)}) == 4
    assert first.prompt(400, 0.5, 1).keys == first.prompt(500, 0.5, 1).keys  # lengths compare on the same numbers
    assert Prompts(PasskeyTask(seed=1), by_byte).prompt(400, 0.0, 0).sha256 != forwards[400, 0.0, 0]


def test_trials_begin_at_different_places_of_the_filler(by_byte, tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("".join(chr(ord("a") + n % 26) * (n % 7 + 1) + " " for n in range(500)))
    prompts = Prompts(PasskeyTask(filler=str(book)), by_byte)
    starts = {by_byte.decode(prompts.prompt(500, 1.0, trial).input_ids).split("there.")[1][:60] for trial in range(5)}
    assert len(starts) == 5 and all(start in 2 * f" {book.read_text().strip()}" for start in starts)


def test_needles_have_names_and_distractors_are_no_pass_keys(by_byte):
    prompt = Prompts(PasskeyTask(needles=3, distractors=10, ask="all"), by_byte).prompt(4000, 0.5, 0)
    text = by_byte.decode(prompt.input_ids)
    facts = re.findall(
        r"\nThe ([a-z ]+(?: of [A-Z][a-z]+)?) is (\d{5})\. Remember it\. (\d{5}) is the ([a-zA-Z ]+)\.\n", text.replace("\n", "\n\n")
    )
    assert len(facts) == 13 and all(number == again and thing == same for thing, number, again, same in facts)
    keys = {thing.removeprefix("pass key of "): number for thing, number, *_ in facts if thing.startswith("pass key")}
    assert set(keys) <= set(NAMES) and len(keys) == 3 and set(keys.values()) == set(prompt.keys)
    assert len({number for _, number, *_ in facts}) == 13
    asked = text.split("\nWhat is ")[1]
    assert re.findall(r"The pass key of ([A-Z][a-z]+) is (\d{5})", asked) == [
        (name, keys[name]) for name in re.findall(r"the pass key of (\w+)", asked)
    ]
    (one,) = Prompts(PasskeyTask(needles=3, ask="one"), by_byte).prompt(4000, 0.5, 0).keys
    assert len(one) == 5


def test_scores_are_those_of_the_whole_logits(model, by_byte):
    """Loss of transformers itself with the labels of the answer, and argmax of all logits, against the pass that sees the answers only."""
    task = {"needles": 2, "ask": "all"}
    result = passkey(model, by_byte, [600, 700], [0.5], 3, **task)
    assert result.head == "chunked" and [cell.trials for cell in result.cells] == [3, 3]
    prompts = Prompts(PasskeyTask(**task), by_byte)
    for cell in result.cells:
        nats, right, exact = 0.0, 0, 0
        for trial in range(3):
            prompt = prompts.prompt(cell.length, 0.5, trial)
            ids, labels = prompt.input_ids[None], torch.full((1, cell.length), -100)
            labels[0, prompt.scored] = prompt.input_ids[prompt.scored]
            with torch.no_grad():
                out = model(input_ids=ids, labels=labels)
            nats += out.loss.item() * 10
            hits = out.logits[0, :-1].argmax(-1)[prompt.scored - 1] == ids[0, prompt.scored]
            right, exact = right + int(hits.sum()), exact + bool(hits.all())
        assert cell.nats == pytest.approx(nats / 3, rel=1e-5)
        assert cell.token_accuracy == right / 30 and cell.exact == exact / 3


@pytest.fixture(scope="module")
def trained(folder, by_byte):
    """The model after it has learned the answers of two prompts of 280 tokens by heart."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompts = [Prompts(PasskeyTask(), by_byte).prompt(280, 0.5, trial) for trial in (0, 1)]
    ids = torch.stack([prompt.input_ids for prompt in prompts])
    labels = torch.full_like(ids, -100)
    labels[:, prompts[0].scored] = ids[:, prompts[0].scored]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    return model.eval()


def test_what_the_model_knows_is_found_and_generated(trained, by_byte):
    """Two of four trials are known. Greedy generation gives them and no others, whatever the model's own generation config says."""
    trained.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=1e6, no_repeat_ngram_size=1)
    (cell,) = passkey(trained, by_byte, [280], [0.5], 4, generate=True).cells
    assert (cell.exact, cell.generated) == (0.5, 0.5) and 0.5 <= cell.token_accuracy < 1
    (known,) = passkey(trained, by_byte, [280], [0.5], 2).cells
    assert (known.exact, known.token_accuracy, known.generated) == (1.0, 1.0, None) and known.nats < 0.5


def test_one_wrong_digit_is_not_exact(trained, by_byte):
    """Without the third digit of its key in the output layer, the model misses the key, by one token or as often as the digit is there."""
    key = Prompts(PasskeyTask(), by_byte).prompt(280, 0.5, 0).keys[0]
    head = trained.get_output_embeddings()
    hook = head.register_forward_hook(lambda layer, args, logits: logits.index_fill(-1, torch.tensor(by_byte.encode(key[2])), -1e3))
    try:
        (cell,) = passkey(trained, by_byte, [280], [0.5], 1, generate=True).cells
    finally:
        hook.remove()
    assert (cell.exact, cell.generated) == (0.0, 0.0)
    assert cell.token_accuracy == pytest.approx(1 - key.count(key[2]) / 5)


def test_all_needles_in_turn_are_generated(trained, by_byte, monkeypatch):
    """The numbers of the generated text count, in their order: a real run of `generate` on a model whose output layer is a script."""
    task = {"needles": 2, "ask": "all"}
    prompt = Prompts(PasskeyTask(**task), by_byte).prompt(500, 0.5, 0)
    for script, expected in ((prompt.input_ids.tolist(), 1.0), (swapped(prompt, by_byte), 0.0)):
        hook = trained.get_output_embeddings().register_forward_hook(scripted(script, prompt.answers[0].start))
        try:
            found = trained_answers(trained, by_byte, task)
        finally:
            hook.remove()
        assert found == expected


def trained_answers(model, tokenizer, task):
    return passkey(model, tokenizer, [500], [0.5], 1, generate=True, **task).cells[0].generated


def swapped(prompt, tokenizer):
    """The tokens of the prompt with the two numbers in each other's place."""
    ids = prompt.input_ids.tolist()
    (one, other), found = prompt.answers, list(ids)
    found[one.start : one.stop], found[other.start : other.stop] = ids[other.start : other.stop], ids[one.start : one.stop]
    return found


def scripted(script, start):
    """A hook that makes the nth decoding step say the nth token of the script; passes over whole prompts are left alone."""
    said = iter(script[start:])

    def say(layer, args, logits):
        if logits.shape[1] != 1:
            return logits
        return torch.full_like(logits, -100.0).index_fill(-1, torch.tensor([next(said)]), 100.0)

    return say


def test_encodings_side_by_side_and_the_model_is_stock_again(model, by_byte):
    before = hf_posenc.inspect(model).fingerprint
    results = passkey(model, by_byte, [300], [0.5], 2, encodings={"stock": {}, "linear": {"factor": 4.0}, "nope": {}})
    assert [result.encoding for result in results.values()] == ["stock", "linear", "nope"]
    assert len({result.fingerprint for result in results.values()}) == len({result.cells[0].nats for result in results.values()}) == 3
    assert hf_posenc.inspect(model).fingerprint == before == results["stock"].fingerprint
    with hf_posenc.patched(model, "linear", factor=4.0):
        alone = passkey(model, by_byte, [300], [0.5], 2)
    assert (alone.encoding, alone.cells[0].nats) == ("linear", results["linear"].cells[0].nats)


def test_the_model_is_left_as_it_was(model, by_byte):
    model.train()
    model.model.norm.eval()
    passkey(model, by_byte, [300], [0.5], 1, generate=True)
    assert model.training and not model.model.norm.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    model.eval()


def test_a_stock_scaling_that_remembers_long_inputs_does_not_carry_over(folder, by_byte):
    """Stock dynamic NTK keeps the base of the longest input; a shorter cell measured after it gives what it gives alone."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = AutoModelForCausalLM.from_pretrained(folder, rope_parameters=rope).eval()
    prompts = Prompts(PasskeyTask(), by_byte)
    examiner = Examiner(model, find_head(model, torch.arange(8)), prompts, generate=True)
    alone = examiner.score(prompts.prompt(300, 0.5, 0))[1]
    examiner.score(prompts.prompt(2000, 0.5, 0))
    assert torch.allclose(examiner.score(prompts.prompt(300, 0.5, 0))[1], alone)
    frequencies = []
    model.model.register_forward_pre_hook(lambda *_: frequencies.append(model.model.rotary_emb.inv_freq.clone()))
    examiner.generates(prompts.prompt(300, 0.5, 0))
    assert torch.equal(frequencies[1], model.model.rotary_emb.original_inv_freq)  # when the prompt comes, after the reset


def test_a_model_whose_head_is_not_known_is_scored_from_its_own_logits(folder, by_byte):
    """A forward that does something else to its logits: found out, and still right."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    plain = passkey(model, by_byte, [300], [0.5], 1)

    def doubled(module, args, output):
        output.logits = output.logits * 2
        return output

    model.register_forward_hook(doubled)
    result = passkey(model, by_byte, [300], [0.5], 1)
    assert (plain.head, result.head) == ("chunked", "full logits")
    assert result.cells[0].nats != pytest.approx(plain.cells[0].nats, rel=1e-2)
    prompt = Prompts(PasskeyTask(), by_byte).prompt(300, 0.5, 0)
    with torch.no_grad():
        logits = model(input_ids=prompt.input_ids[None]).logits[0]
    nats = -logits.log_softmax(-1)[prompt.scored - 1, prompt.input_ids[prompt.scored]].sum().item()
    assert result.cells[0].nats == pytest.approx(nats, rel=1e-5)


def test_a_result_survives_the_disk(model, by_byte, tmp_path):
    result = passkey(model, by_byte, [300, 400], [0.0, 1.0], 2, digits=3, settings={"why": "test"})
    assert RetrievalResult.load(result.save(tmp_path / "a" / "result.json")) == result
    written = json.loads((tmp_path / "a" / "result.json").read_text())
    assert (written["protocol"], written["template"], written["task"]["digits"], written["settings"]) == ("passkey", 1, 3, {"why": "test"})
    assert {"torch", "transformers"} <= set(written["versions"]) and written["dtype"] == "float64" and written["fingerprint"]
    assert [(cell["length"], cell["depth"], cell["trials"]) for cell in written["cells"]] == [
        (300, 0, 2),
        (300, 1, 2),
        (400, 0, 2),
        (400, 1, 2),
    ]
    assert result.found(400)[1] == 4 and result.peak_memory and result.seconds > 0


class Inputs:
    """The lengths of the inputs that a model gets while this is open, Ctrl-C before the one after the first `stop`."""

    def __init__(self, model, stop=None):
        self.model, self.stop, self.lengths = model, stop, []

    def see(self, module, args, kwargs):
        tokens = kwargs["input_ids"].shape[1]
        if tokens > 8:
            if len(self.lengths) == self.stop:
                raise KeyboardInterrupt
            self.lengths.append(tokens)

    def __enter__(self):
        self.hook = self.model.model.register_forward_pre_hook(self.see, with_kwargs=True)
        return self.lengths

    def __exit__(self, *_):
        self.hook.remove()


def test_an_interrupted_run_goes_on_where_it_stopped(model, by_byte, tmp_path):
    grid = {"lengths": [300, 400], "depths": [0.0, 1.0], "trials": 2, "journal": tmp_path}
    whole = passkey(model, by_byte, **{**grid, "journal": None})
    with pytest.raises(Interrupted) as stopped, Inputs(model, stop=5):
        passkey(model, by_byte, **grid)
    partial = stopped.value.result
    assert not partial.complete and [(cell.length, cell.depth, cell.trials) for cell in partial.cells] == [
        (300, 0, 2),
        (300, 1, 2),
        (400, 0, 1),
    ]
    (journal,) = tmp_path.glob("*.jsonl")
    with open(journal, "a") as file:
        file.write('\n{"length": 400, "depth": 1.0, "ind')  # of a process that died while it wrote
    with Inputs(model) as lengths:
        resumed = passkey(model, by_byte, **grid)
    assert lengths == [400, 400, 400] and resumed.complete
    scores = [[(cell.length, cell.depth, cell.exact, cell.token_accuracy, cell.nats) for cell in each.cells] for each in (whole, resumed)]
    assert scores[0] == scores[1]
    with Inputs(model) as lengths:
        passkey(model, by_byte, **{**grid, "lengths": [300, 500]})  # a larger grid takes what it shares with the old one
        passkey(model, by_byte, **{**grid, "lengths": [300]}, seed=1)  # another task takes nothing
    assert lengths == [500] * 4 + [300] * 4


def test_another_encoding_does_not_take_the_numbers_of_the_first(model, by_byte, tmp_path):
    grid = {"lengths": [300], "depths": [0.5], "trials": 1, "journal": tmp_path}
    stock = passkey(model, by_byte, **grid)
    with hf_posenc.patched(model, "linear", factor=4.0), Inputs(model) as lengths:
        linear = passkey(model, by_byte, **grid)
    assert lengths == [300] and linear.cells[0].nats != stock.cells[0].nats


def test_progress_counts_every_token_once(model, by_byte):
    for how, tokens in (({}, 4 * 300 + 4 * 400), ({"generate": True}, 4 * 599 + 4 * 799)):
        seen = []
        model.generation_config.eos_token_id = None
        passkey(model, by_byte, [300, 400], [0.0, 1.0], 2, progress=seen.append, **how)
        assert sum(seen) == pytest.approx(tokens)


@pytest.mark.parametrize(
    ("depths", "values"),
    [(5, (0.0, 0.25, 0.5, 0.75, 1.0)), ([3.0], (0.0, 0.5, 1.0)), (0.5, (0.5,)), ([1], (1.0,)), ([0.9, 0.1, 0.9], (0.1, 0.9))],
)
def test_depths_are_steps_or_values(depths, values):
    assert Grid.of([10], depths, 1).depths == values


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"lengths": []}, "at least one length"),
        ({"lengths": [400, 100]}, r"100 tokens is too short: the words around the filler need \d+"),
        ({"depths": [0.5, 1.5]}, "values from 0 to 1"),
        ({"depths": 2.5}, "values from 0 to 1"),
        ({"depths": []}, "values from 0 to 1"),
        ({"depths": [math.nan]}, "values from 0 to 1"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"digits": 0}, "digits must be at least 1"),
        ({"digits": 1, "distractors": 9}, "10 different numbers need more than 1 digits"),
        ({"needles": 0}, "needles must be 1 to 20"),
        ({"needles": 21}, "needles must be 1 to 20"),
        ({"ask": "some"}, "'one' or 'all'"),
        ({"distractors": -1}, "distractors at least 0"),
        ({"filler": "gone.txt"}, "gone.txt"),
        ({"encodings": "yarm"}, "yarn"),
    ],
)
def test_mistakes_are_told_before_the_model_runs(model, by_byte, how, message):
    given = {"lengths": [300], "depths": [0.5], "trials": 1, **how}
    with Inputs(model) as lengths, pytest.raises(ValueError, match=message):
        passkey(model, by_byte, **given)
    assert lengths == []


def test_the_shortest_length_is_the_one_that_the_message_says(model, by_byte):
    with pytest.raises(ValueError) as error:
        passkey(model, by_byte, [10], [0.5], 1)
    shortest = int(str(error.value).split()[-1])
    passkey(model, by_byte, [shortest], [0.5], 1)
    with pytest.raises(ValueError, match="too short"):
        passkey(model, by_byte, [shortest - 1], [0.5], 1)


def test_a_length_beyond_the_table_is_told_before_the_model_runs(tmp_path, by_byte):
    save_tiny(tmp_path, "gpt2")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, max_position_embeddings=320, n_positions=320, ignore_mismatched_sizes=True
    ).eval()
    passkey(model, by_byte, [320], [0.5], 1)
    with pytest.raises(ValueError, match="table of 320 positions and 321 were asked for"):
        passkey(model, by_byte, [300, 321], [0.5], 1)
    with pytest.raises(ValueError, match="table of 320 positions"):
        passkey(model, by_byte, [400], [0.5], 1, encodings=["rope", "stock"])
    assert passkey(model, by_byte, [400], [0.5], 1, encodings="rope")["rope"].cells[0].trials == 1


def test_a_tokenizer_of_another_model_or_without_chat_template(model, by_pair, folder):
    with pytest.raises(ValueError, match="not the tokenizer of this model"):
        passkey(model, by_pair, [300], [0.5], 1)
    with pytest.raises(ValueError, match="no chat template"):
        passkey(model, AutoTokenizer.from_pretrained(folder), [300], [0.5], 1, chat=True)


def test_numbers_that_are_none_are_an_error(folder, by_byte):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"at length 300, depth 0.5, trial 0"):
        passkey(model, by_byte, [300], [0.5], 1)


def test_a_bos_token_comes_first_where_the_tokenizer_puts_one(by_byte, by_pair):
    assert Prompts(PasskeyTask(), by_pair).prompt(300, 0.5, 0).input_ids[0] == by_pair.bos_token_id
    assert by_byte.bos_token_id not in Prompts(PasskeyTask(), by_byte).prompt(300, 0.5, 0).input_ids
    chat = Prompts(PasskeyTask(chat=True), by_pair).prompt(300, 0.5, 0).input_ids.tolist()
    assert chat[0] == by_pair.bos_token_id and chat.count(by_pair.bos_token_id) == 1


def test_the_chat_template_puts_the_answer_into_the_assistants_turn(by_byte):
    prompt = Prompts(PasskeyTask(chat=True), by_byte).prompt(400, 0.5, 0)
    text = by_byte.decode(prompt.input_ids)
    assert text.startswith("<user>There is") and text.endswith(f"What is the pass key?</user><assistant>The pass key is {prompt.keys[0]}")
    assert "[[" not in text
