"""One encoding asked for several times, with other options or on other layers, wherever encodings are measured side by side."""

import json

import pytest
from test_evaluation import ids, tiny
from tiny import save_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_posenc
from hf_posenc.evaluation import Result, passkey, perplexity
from hf_posenc.evaluation.perplexity import cli as perplexity_cli
from hf_posenc.evaluation.retrieval import passkey_cli
from hf_posenc.variants import parse_layers, plan_of, read_plan


def test_the_narrower_option_wins():
    flags, option = {"factor": 2.0}, ["beta_fast=16", "yarn.factor=3", "linear.factor=5"]
    found = read_plan(["yarn", "yarn:factor=4,beta_fast=8", "linear", "nope:layers=0,2", "stock"], option, flags)
    assert found == {
        "yarn": {"factor": 3, "beta_fast": 16},
        "yarn:factor=4,beta_fast=8": {"factor": 4, "beta_fast": 8},
        "linear": {"factor": 5},
        "nope:layers=0,2": {"layers": "0,2"},
        "stock": {},
    }


def test_options_of_every_encoding():
    labels = ["yarn:factor=4,temperature=log_n", 'nope:temperature={"name":"log_n","trained_length":64}', "alibi:heads=::2"]
    assert read_plan(labels) == {
        labels[0]: {"factor": 4, "temperature": "log_n"},
        labels[1]: {"temperature": {"name": "log_n", "trained_length": 64}},
        labels[2]: {"heads": "::2"},
    }


def test_layers_are_for_every_encoding_but_the_stock_model():
    assert read_plan(["stock", "alibi", "nope:layers=3"], flags={"layers": "0,1"}) == {
        "stock": {},
        "alibi": {"layers": "0,1"},
        "nope:layers=3": {"layers": 3},
    }
    with pytest.raises(ValueError, match="none of the encodings takes the option 'layers'"):
        read_plan(["stock"], flags={"layers": "all"})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["yarn:factor=2", "yarn:factor=2.0"], "named twice"),
        (["alibi", "alibi"], "named twice"),
        (["yarn:factr=2"], "'yarn' has no option 'factr'"),
        (["stock:factor=2"], "takes no options"),
        (["yern:factor=2"], "yern"),
        (["yarn:2"], "key=value"),
    ],
)
def test_mistakes_in_names(labels, message):
    with pytest.raises(ValueError, match=message):
        read_plan(labels)


def test_two_sets_of_options_are_two_results_and_those_of_each_alone(tmp_path):
    model, text = tiny(), [ids(40), ids(33, seed=2)]
    labels = ["yarn:factor=2", "yarn:factor=4", "nope:layers=0", "stock"]
    found = perplexity(model, text, lengths=[32], encodings=labels, journal=tmp_path)
    assert list(found) == labels and [result.encoding for result in found.values()] == ["yarn", "yarn", "nope", "stock"]
    for label, name, options in zip(labels, ("yarn", "yarn", "nope"), ({"factor": 2}, {"factor": 4}, {"layers": 0}), strict=False):
        with hf_posenc.patched(model, name, **options):
            alone = perplexity(model, text, lengths=[32])
        assert found[label].options == options and found[label].curve == alone.curve and found[label].fingerprint == alone.fingerprint
    assert len({result.fingerprint for result in found.values()}) == 4
    again = perplexity(model, text, lengths=[32], encodings=labels, journal=tmp_path)
    assert [result.curve for result in again.values()] == [result.curve for result in found.values()], "each its own journal"


@pytest.mark.parametrize("layers", [slice(0, None, 2), slice(1), (0,), range(1, 2), "all", -1])
def test_layers_survive_the_disk_and_mean_the_same(layers, tmp_path):
    model, text = tiny(), ids(24)
    result = perplexity(model, text, lengths=[24], encodings={"nope": {"layers": layers}})["nope"]
    saved = Result.load(result.save(tmp_path / "result.json"))
    again = perplexity(model, text, lengths=[24], encodings={"nope": saved.options})["nope"]
    with hf_posenc.patched(model, "nope", layers=layers if isinstance(layers, (slice, str, int)) else list(layers)):
        assert saved.fingerprint == again.fingerprint == hf_posenc.inspect(model).fingerprint


def test_layers_as_text():
    assert plan_of({"nope": {"layers": slice(3, None, 4)}}) == {"nope": {"layers": "3::4"}} and parse_layers("3::4") == slice(3, None, 4)
    assert plan_of({"nope": {"layers": slice(0, 2)}}) == {"nope": {"layers": "0:2"}} and parse_layers("0:2") == slice(0, 2)
    with pytest.raises(ValueError, match="nor indices"):
        parse_layers("first")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


RECIPES = {
    "perplexity": (perplexity_cli.main, ["--lengths", "32"], "perplexity.csv"),
    "passkey": (passkey_cli.main, ["--lengths", "500", "--depths", "0.5", "--trials", "1"], "passkey.csv"),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipes_measure_one_encoding_with_two_sets_of_options(recipe, model, tmp_path, capsys):
    main, flags, table = RECIPES[recipe]
    labels = ["yarn:factor=2", "yarn:factor=4", "nope:layers=0"]
    command = ["--model", str(model), *flags, "--device", "cpu", "--output_dir", str(tmp_path), "--encoding", *labels]
    assert main(command) == 0
    results = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert sorted((each["encoding"], str(each["options"])) for each in results) == [
        ("nope", "{'layers': 0}"),
        ("yarn", "{'factor': 2}"),
        ("yarn", "{'factor': 4}"),
    ]
    assert len({each["fingerprint"] for each in results}) == 3
    assert [line.split(",")[0] for line in (tmp_path / table).read_text().splitlines()[1:]] == labels
    assert len(list(tmp_path.glob("*.png"))) == (3 if recipe == "passkey" else 1)
    assert main(command) == 0 and capsys.readouterr().out.count("measured before") == 3


@pytest.mark.parametrize(("layers", "covered"), [("0", [0]), ("0,1", [0, 1]), ("1::2", [1]), ("all", [0, 1])])
def test_layers_is_a_flag(layers, covered, model, tmp_path):
    for recipe, (main, flags, _) in RECIPES.items():
        folder = tmp_path / recipe
        command = ["--model", str(model), *flags, "--device", "cpu", "--output_dir", str(folder), "--encoding", "stock", "nope"]
        assert main([*command, "--layers", layers]) == 0
        (found,) = folder.glob("nope-*.json")
        stock = AutoModelForCausalLM.from_pretrained(model)
        with hf_posenc.patched(stock, "nope", layers=covered):
            assert json.loads(found.read_text())["fingerprint"] == hf_posenc.inspect(stock).fingerprint


@pytest.mark.parametrize(("words", "message"), [("stock --layers 0", "takes the option 'layers'"), ("nope --layers x", "nor indices")])
def test_layers_that_are_none(words, message, model, tmp_path, capsys):
    main, flags, _ = RECIPES["perplexity"]
    assert main(["--model", str(model), *flags, "--output_dir", str(tmp_path / "out"), "--encoding", *words.split()]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_passkey_takes_names_with_options(model):
    found = passkey(
        AutoModelForCausalLM.from_pretrained(model),
        AutoTokenizer.from_pretrained(model),
        [500],
        [0.5],
        1,
        encodings=["yarn:factor=2", "yarn:factor=4"],
    )
    assert [result.options for result in found.values()] == [{"factor": 2}, {"factor": 4}]
