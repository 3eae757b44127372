"""Tasks: what a prompt is, in how many tokens, and how the authors of the benchmarks score an answer."""

import re
import string
from collections import Counter

import pytest
from questions import save_questions
from tiny import save_tiny
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_posenc.evaluation import resolve_model, tasks
from hf_posenc.evaluation.retrieval import Prompts
from hf_posenc.evaluation.tasks import TASKS, names_of, scores
from hf_posenc.evaluation.tasks.babilong import PLACES, THINGS
from hf_posenc.evaluation.tasks.mrcr import MARK
from hf_posenc.evaluation.tasks.nolima import PAIRS
from hf_posenc.evaluation.tasks.words import NOISE, sentences

pytest.importorskip("wonderwords")
BUDGETS = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}  # scripts/data/synthetic/constants.py of NVIDIA/RULER
RULER = names_of(["ruler"])
FILES = {}


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory):
    """Of the tasks that have questions of others."""
    FILES.update(save_questions(tmp_path_factory.mktemp("questions")))


def create(name, **options):
    """A task with its file."""
    return tasks.create(name, **FILES.get(name, {}), **options)


@pytest.fixture(scope="module")
def by_byte(tmp_path_factory):
    """Every byte is a token."""
    tokenizer = AutoTokenizer.from_pretrained(save_tiny(tmp_path_factory.mktemp("model")))
    tokenizer.chat_template = "{% for m in messages %}<user>{{ m['content'] | trim }}</user>{% endfor %}<assistant>"
    return tokenizer


def asked(tokenizer, name, length=8000, trial=0, depth=None, **options):
    """A prompt, and its text up to where a generated answer begins."""
    prompt = Prompts(create(name, **options), tokenizer).prompt(length, depth, trial)
    return prompt, tokenizer.decode(prompt.input_ids[: prompt.start])


def test_ruler_has_its_eleven_generated_tasks():
    assert len(RULER) == 11 and [name for name in RULER if not name.startswith("niah_")] == ["cwe", "fwe", "vt"]
    assert names_of(["ruler-qa"]) == ["qa_1", "qa_2"], "reported apart"
    with pytest.raises(ValueError, match="niah_single_1"):
        names_of(["niah_single"])


@pytest.mark.parametrize("length", [4096, *(pytest.param(length, marks=pytest.mark.slow) for length in (16384, 131072))])
@pytest.mark.parametrize("name", TASKS)
def test_prompt_and_budget_have_exactly_as_many_tokens_as_asked_for(by_byte, name, length):
    prompts = Prompts(create(name), by_byte)
    length = max(length, prompts.shortest(length, None, 1))
    prompt = prompts.prompt(length, None, 1)
    assert prompt.start + max(prompt.budget, len(prompt.input_ids) - prompt.start) == length
    assert prompt.budget in {BUDGETS.get(name.partition("_")[0]), create(name).budget, len(prompt.input_ids) - prompt.start}
    if name.partition("_")[0] in BUDGETS:
        assert prompt.budget == BUDGETS[name.partition("_")[0]]


@pytest.mark.slow
def test_prompts_of_a_real_tokenizer_are_exact_and_whole():
    """One task of each kind at 128k, all at 4k; what is asked is there from the first to the last word, and so is what is to be found."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("demo"))
    kinds = {type(create(name)): name for name in TASKS}
    for name, length in [*((name, 4096) for name in TASKS), *((name, 131072) for name in kinds.values())]:
        task = create(name)
        prompt, question = Prompts(task, tokenizer).prompt(length, None, 1), task.question(length, None, 1)
        assert prompt.start + max(prompt.budget, len(prompt.input_ids) - prompt.start) == length, (name, length)
        assert prompt.budget in (task.budget, len(prompt.input_ids) - prompt.start)
        text = tokenizer.decode(prompt.input_ids[: prompt.start])
        assert text.startswith(question.before) and text.rstrip(" ").endswith(question.after + question.prefix), (name, length)
        if not name.startswith("babilong"):
            assert all(key.removeprefix(prompt.keys[0][:MARK] if name == "mrcr" else "") in text for key in prompt.keys), (name, length)


@pytest.mark.parametrize("name", TASKS)
def test_a_prompt_follows_from_its_cell_alone(by_byte, name):
    """Another trial, seed, length and chat template are other prompts; the same ones, asked in another order, are not."""
    places = [(8000, None, 0), (8000, None, 1), (9000, None, 0)]
    first, again = Prompts(create(name), by_byte), Prompts(create(name), by_byte)
    found = [first.prompt(*place) for place in places]
    assert [each.sha256 for each in found] == [again.prompt(*place).sha256 for place in reversed(places)][::-1]
    others = [Prompts(create(name, **options), by_byte).prompt(8000, None, 0) for options in ({"seed": 1}, {"chat": True})]
    assert len({each.sha256 for each in [*found, *others]}) == 5
    assert found[0].keys == found[2].keys == others[1].keys, "lengths compare on the same questions"
    assert found[0].keys != others[0].keys or name.startswith("babilong")
    text = by_byte.decode(others[1].input_ids)
    assert text.startswith("<user>") and text.count("</user><assistant>") == 1 and "[[" not in text


@pytest.mark.parametrize("name", TASKS)
def test_the_answers_end_the_prompt(by_byte, name):
    prompt, _ = asked(by_byte, name)
    said = [by_byte.decode(prompt.input_ids[[*answer]]) for answer in prompt.answers]
    assert "".join(said).strip() and prompt.answers[-1].stop == len(prompt.input_ids) and prompt.answers[0].start >= prompt.start
    whole = by_byte.decode(prompt.input_ids[prompt.start :])
    assert create(name).score(whole, prompt.keys, prompt.question) == 1.0, "the true answer has the whole score"
    assert create(name).score("", prompt.keys, prompt.question) == 0.0


@pytest.fixture(scope="module")
def by_character():
    """As SentencePiece does: every text begins with a space, which is a token of its own; `, ` is one token."""
    vocabulary = {symbol: at for at, symbol in enumerate(["<unk>", "\u2581", ",", ",\u2581", *string.printable])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[(",", "\u2581")], unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Replace("\u2581", " ")
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.parametrize("name", ["niah_multivalue", "niah_single_1", "vt", "cwe", "fwe", "passkey"])
def test_answers_are_one_text_with_the_question(by_character, name):
    """Made one by one they would begin with two spaces for tokenizers that put one before every text."""
    options = {"needles": 3, "ask": "all"} if name == "passkey" else {}
    prompt = Prompts(create(name, **options), by_character).prompt(8000, None, 0)
    text = by_character.decode(prompt.input_ids)
    asked = text[text.rindex(prompt.question) :]
    _, *ids = by_character(asked, add_special_tokens=False)["input_ids"]
    assert prompt.input_ids[-len(ids) :].tolist() == ids
    said = [by_character.decode(prompt.input_ids[[*answer]]).strip(" ,.") for answer in prompt.answers]
    assert said == [*prompt.keys] and "  " not in asked and prompt.answers[-1].stop == len(prompt.input_ids)


@pytest.mark.parametrize("length", range(3000, 3005))
def test_parts_of_a_prompt_are_put_together_without_spaces(by_character, length):
    """The tokenizer begins every text with a space; only the first part of a prompt has it."""
    prompt = Prompts(create("niah_single_1"), by_character).prompt(length, None, 0)
    text = by_character.decode(prompt.input_ids)
    first, *lines = text[: text.index("\nWhat is")].split("\n")
    assert first.startswith(" A special magic") and len(lines) > 20 and NOISE.startswith(lines[-1])
    assert {line for line in lines[:-1] if not line.startswith("One of")} == {NOISE}
    passkey = Prompts(create("passkey"), by_character).prompt(length, 0.5, 0)
    assert "  " not in by_character.decode(passkey.input_ids)


@pytest.mark.parametrize("name", TASKS)
def test_the_controls_are_short_and_have_the_answer_or_not(by_byte, name):
    prompts = Prompts(create(name), by_byte)
    least = max(prompts.shortest(0, None, 0, other) for other in (False, True))
    own, other = (prompts.prompt(least, None, 0, other) for other in (False, True))
    assert own.keys == other.keys and len(own.input_ids) == len(other.input_ids) and own.sha256 != other.sha256
    head = [by_byte.decode(each.input_ids[: each.start]) for each in (own, other)]
    if not name.startswith("babilong"):
        in_context = [text.removesuffix(prompts.task.question(0, None, 0).prefix).replace(own.question, "") for text in head]
        keys = [key[MARK:] if name == "mrcr" else key for key in own.keys]
        assert all(key in in_context[0] for key in keys) and not all(key in in_context[1] for key in keys)


def test_ruler_templates_are_the_authors(by_byte):
    """Texts of constants.py and the changes of niah.py (NVIDIA/RULER, c3f5e3b4), formatted by them, outside of this tree."""
    _, text = asked(by_byte, "niah_single_1")
    (key,) = re.findall(r"One of the special magic numbers for ([a-z-]+) is: \d{7}\.", text)
    assert text.startswith(
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n"
    )
    assert text.endswith(
        f"\nWhat is the special magic number for {key} mentioned in the provided text? "
        f"The special magic number for {key} mentioned in the provided text is "
    )
    _, text = asked(by_byte, "niah_multiquery")
    keys = re.search(r"numbers for (\S+), (\S+), (\S+), and (\S+) mentioned", text).groups()
    listed = "{}, {}, {}, and {}".format(*keys)
    assert text.startswith("Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz")
    assert text.endswith(
        f"\nWhat are all the special magic numbers for {listed} mentioned in the provided text? "
        f"The special magic numbers for {listed} mentioned in the provided text are "
    )
    _, text = asked(by_byte, "vt")
    value = re.findall(r"assigned the value (\d{5})", text)[-1]
    assert text.count("Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n") == 2
    assert text.endswith(
        f"\nQuestion: Find all variables that are assigned the value {value} in the text above. Answer: According to the chain(s) of "
        f"variable assignment in the text above, 5 variables are assigned the value {value}, they are: "
    )
    _, text = asked(by_byte, "cwe")
    below = "Below is a numbered list of words. In these words, some appear more often than others. "
    below += "Memorize the ones that appear most often.\n1. "
    assert text.startswith(below) and text.count(below) == 2
    assert text.endswith(
        "\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words that appear most often in the list are: "
    )
    _, text = asked(by_byte, "fwe")
    assert text.startswith(
        "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared coded words. "
    )
    assert text.endswith(
        "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently appeared words in "
        "the above coded text? Answer: According to the coded text above, the three most frequently appeared words are: "
    )


@pytest.mark.parametrize("name", [name for name in RULER if name.startswith("niah_")])
def test_needles_are_hidden_as_often_as_ruler_hides_them(by_byte, name):
    """scripts/synthetic.yaml: keys, values and what they are."""
    prompt, text = asked(by_byte, name, length=20000)
    kind = "uuids" if name in ("niah_single_3", "niah_multikey_3") else "numbers"
    found = re.findall(rf"One of the special magic {kind} for ([\w-]+) is: ([\w-]+)\.", text)
    hidden = {"niah_multikey_1": 4, "niah_multivalue": 4, "niah_multiquery": 4}.get(name, 1)
    assert len(found) > 100 if name in ("niah_multikey_2", "niah_multikey_3") else len(found) == hidden
    question = prompt.question
    values = [value for key, value in found if re.search(rf"\b{key}\b", question)]
    assert sorted(values) == sorted(prompt.keys) and len(prompt.keys) == (4 if name in ("niah_multivalue", "niah_multiquery") else 1)
    uuid, word = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", r"[A-Za-z]+-[A-Za-z-]+"
    assert all(re.fullmatch(uuid if kind == "uuids" else r"\d{7}", value) for _, value in found)
    assert all(re.fullmatch(uuid if name == "niah_multikey_3" else word, key) for key, _ in found)


@pytest.mark.parametrize("depth", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("name", ["niah_single_1", "niah_single_2", "niah_multikey_1", "niah_multikey_2"])
def test_the_needle_that_is_asked_for_lies_at_its_depth(by_byte, name, depth):
    prompt, text = asked(by_byte, name, length=30000, depth=depth)
    begin, end = text.index(" afterwards.\n") + 13, text.index("\nWhat ")
    assert (text.index(f": {prompt.keys[0]}.") - begin) / (end - begin) == pytest.approx(depth, abs=0.07)


def test_an_essay_is_the_text_that_is_given_cut_between_sentences(by_byte, tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("  ".join(f"Sentence number {index} is\nhere." for index in range(90)))
    _, text = asked(by_byte, "niah_single_2", length=3000, text=str(book))
    context = text[text.index(" afterwards.\n") + 13 : text.index("\nWhat ")]
    needle = re.search(r" ?One of the special magic numbers for \S+ is: \d{7}\.", context)[0]
    numbers = [int(each) for each in re.findall(r"Sentence number (\d+) is here\.(?= )", context)]
    assert len(numbers) > 60 and numbers == [(numbers[0] + step) % 90 for step in range(len(numbers))] and numbers[0] != 0
    assert re.fullmatch(r"(Sentence number \d+ is here\. ?)+[A-Za-z\d ]*\.?", context.replace(needle, ""))
    assert (create("niah_single_1").source, create("niah_single_2").source) == ("RULER", "RULER-style")


def test_a_chain_of_variables_can_be_followed(by_byte):
    prompt, text = asked(by_byte, "vt", trial=3)
    value = re.findall(r"assigned the value (\d{5})", text)[-1]
    context = text.rsplit("following text.\n\n", 1)[1].split("\nQuestion")[0]
    lines = [line.strip() for line in context.split("\n") if line.startswith("VAR")]
    holds = {}
    for line in lines:
        name, source = re.fullmatch(r"VAR ([A-Z]{5}) = (?:VAR )?(\w+)", line).groups()
        holds[name] = holds.get(source, source)
    assert [name for name in holds if holds[name] == value] == list(prompt.keys) and len(holds) == 5
    assert set(context.split("\n")[:-1]) - {f"{line} " for line in lines} - {*lines} == {NOISE}


def test_common_words_appear_as_often_as_in_ruler(by_byte):
    """get_example of common_words_extraction.py: 30 times and 3, below 4,096 tokens 6 and 1; single ones of the next words fill up."""
    for length, common, others in ((20000, 30, 3), (3000, 6, 1)):
        prompt, text = asked(by_byte, "cwe", length=length)
        listed = re.findall(r"(\d+)\. ([a-z-]+)", text.split(" most often.\n")[2].split("\nQuestion")[0])
        assert [int(number) for number, _ in listed] == [*range(1, len(listed) + 1)]
        counts = Counter(word for _, word in listed)
        assert {word for word, count in counts.items() if count == common} == set(prompt.keys) and len(prompt.keys) == 10
        assert {count for word, count in counts.items() if word not in prompt.keys} <= {others, 1}


def test_frequent_words_follow_the_zeta_distribution(by_byte):
    """freq_words_extraction.py: int(n k^-2 / zeta(2)) of each rank, dots for the first."""
    prompt, text = asked(by_byte, "fwe", length=20000)
    counts = Counter(re.search(r"coded words\. (.*)\nQuestion", text, re.DOTALL)[1].split())
    ranked = [word for word, _ in counts.most_common(4)]
    assert ranked == ["...", *prompt.keys]
    words = 2 * 4 * counts[ranked[1]] * 0.822467  # n / zeta(2) / 4 are of the second rank
    assert counts[ranked[3]] == pytest.approx(words / 1.644934 / 16, abs=2) and counts["..."] == pytest.approx(words / 1.644934, rel=0.05)


def test_references_found_is_rulers_score():
    """Numbers of string_match_all after postprocess_pred (NVIDIA/RULER, c3f5e3b4), run on the same outputs."""
    cases = [
        ("The numbers are 1234567, 7654321.", ["1234567", "7654321", "1111111"], 66.67),
        ("nothing", ["x"], 0.0),
        (" Foo-Bar and BAZ\x00qux ", ["foo-bar", "baz", "baz\nqux", "zzz"], 75.0),
        ("alpha", ["ALPHA"], 100.0),
    ]
    for said, references, score in cases:
        assert round(100 * scores.references_found(said, references), 2) == score


def test_a_value_is_found_as_helmet_finds_it():
    """Numbers of substring_exact_match in json_kv's post_process (princeton-nlp/HELMET, 4526dfbd), run on the same outputs."""
    key = "4e476018-d5be-4d70-9410-32b14fed7bfb"
    right = [key, f" {key}\nKey: x", f"Corresponding value: {key.upper()}\n", f"the value is The {key}.", key.replace("-", "")]
    assert [scores.value_found(said, [key], "corresponding value:") for said in right] == [1.0] * 5
    wrong = ["4e476018 d5be 4d70", key[:-1], ""]
    assert [scores.value_found(said, [key], "corresponding value:") for said in wrong] == [0.0] * 3


@pytest.mark.parametrize(
    ("target", "said", "question", "score"),
    [
        ("kitchen", " The most recent location of Mary is kitchen.", "Where is Mary?", 1.0),
        ("kitchen", "Kitchen. Or the garden", "Where is Mary?", 1.0),
        ("kitchen", "kitchen or garden", "Where is Mary?", 0.0),
        ("bathroom", "Before the kitchen the apple was in the bathroom.", "Where was the apple before the kitchen?", 1.0),
        ("bathroom", "the kitchen", "Where was the apple before the kitchen?", 0.0),
        ("office", "garden.office", "Where is John?", 0.0),
        ("office", "It is the OFFICE <example> garden", "Where is John?", 1.0),
        ("office", "The office\nQuestion: where is Mary? garden", "Where is John?", 0.0),
    ],
)
def test_the_only_label_counts_as_in_babilong(target, said, question, score):
    """Numbers of compare_answers (booydar/babilong, 7a6efee2), run on the same outputs."""
    assert scores.only_label(said, target, question, PLACES) == score


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("aYooSG8CQgA poem of tapirs", 1.0),
        ("aYooSG8CQgA poem about tapirs in rain", 0.6976744186046512),
        ("A poem of tapirs", 0.0),
        ("aYooSG8CQg", 0.0),
    ],
)
def test_what_follows_the_random_string_is_compared_as_in_mrcr(said, score):
    """Numbers of `grade` (dataset card of openai/mrcr), run on the same outputs."""
    answer = "aYooSG8CQgA poem of tapirs"
    assert scores.similar_after(said, answer, answer[:MARK]) == score
    assert create("mrcr").score(f" {said}", (answer,), "") == score, "the prompt owes a space"
    assert create("mrcr").score(f"  {said}", (answer,), "") == create("mrcr").score(f"\n{said}", (answer,), "") == 0.0


def test_a_json_object_has_the_key_once_and_two_examples(by_byte):
    prompt, text = asked(by_byte, "json_kv", depth=0.25)
    context, shown = text.split("\n\nExtract the value corresponding to the specified key in the JSON object below.\n\n")
    (key,) = re.findall(r"Key: (\S+)\nCorresponding value: ?$", shown)
    pairs = dict(re.findall(r'"([\w-]{36})": "([\w-]{36})"', context))
    assert pairs[key] == prompt.keys[0] and [*pairs].index(key) / len(pairs) == pytest.approx(0.25, abs=0.02) and len(pairs) > 80
    examples = re.findall(r"Key: (\S+)\nCorresponding value: (\S+)\n\n", shown)
    assert len(examples) == 2 and all(pairs[known] == value and known != key for known, value in examples)
    assert context.startswith('{"') and ",\n " in context and context.endswith("}")


FACT = re.compile(
    r"(Mary|John|Daniel|Sandra) (?:(?:went to|moved to|journeyed to|travelled to|went back to) the (?P<place>\w+)"
    r"|(?:got|took|grabbed|picked up) the (?P<taken>\w+) there|(?:dropped|left|discarded|put down) the (?P<left>\w+))\."
)


@pytest.mark.parametrize("trial", range(6))
@pytest.mark.parametrize("facts", [1, 2, 3])
def test_facts_in_a_text_answer_the_question(by_byte, facts, trial):
    """The facts read back from the prompt, by a narrator of its own: who is where, who holds what, where each thing has been."""
    prompt, text = asked(by_byte, f"babilong_qa{facts}", trial=trial)
    context, question = text.split("<context>\n")[1].split("\n</context>\n\nQuestion: ")
    here, hands, trace = {}, {name: set() for name in ("Mary", "John", "Daniel", "Sandra")}, {thing: [] for thing in THINGS}
    for fact in FACT.finditer(context):
        who = fact[1]
        if fact["place"]:
            here[who] = fact["place"]
            for thing in hands[who]:
                trace[thing].append(here[who])
        elif fact["taken"]:
            assert not any(fact["taken"] in held for held in hands.values()), "nobody else has it"
            assert not trace[fact["taken"]] or trace[fact["taken"]][-1] == here[who], "it is where it was left"
            hands[who].add(fact["taken"])
            trace[fact["taken"]] = trace[fact["taken"]] or [here[who]]
        else:
            hands[who].remove(fact["left"])
    words = re.findall(r"\w+", question)
    answer = here[words[2]] if facts == 1 else trace[words[3]][-1] if facts == 2 else trace[words[3]][-2]
    assert prompt.keys == (answer,) and (facts < 3 or words[6] == trace[words[3]][-1])


def test_the_nth_of_equal_requests_is_asked_for(by_byte):
    for trial in range(4):
        prompt, text = asked(by_byte, "mrcr", trial=trial, needles=3)
        mark, nth, form = re.search(r"\nUser: Prepend (\w{10}) to the (\d)\w\w \(1 indexed\) (.+)\. Do not", text).groups()
        told = re.findall(rf"User: Write a {form}\nAssistant: (.+)\n", text)
        assert len(set(told)) == 3 and prompt.keys == (mark + told[int(nth) - 1],)
        assert text.count("User: Write a ") > 15


def test_needles_share_no_word_with_their_question(by_byte):
    common = {"a", "the", "of", "to", "for", "has", "is", "this", "in", "on", "from", "and"}
    for pair in PAIRS:
        needle, question = (set(re.findall(r"\w+", text.lower())) - common for text in pair)
        assert not needle & question, pair
    prompt, text = asked(by_byte, "nolima", depth=0.5)
    (pair,) = [pair for pair in PAIRS if pair.question in text]
    assert pair.needle.format(prompt.keys[0]) in text and sum(pair.needle.split("{}")[1] in text for pair in PAIRS) == 4
    assert scores.contains(f" {prompt.keys[0]}, I think", prompt.keys) == 1.0 and scores.contains(" nobody", prompt.keys) == 0.0


def test_sentences_are_those_of_the_text():
    found = sentences("essay")
    assert len(found) > 1000 and not any("\n" in each or "  " in each for each in found)
