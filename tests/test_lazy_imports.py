"""Nothing is imported before it is needed, and our checkpoints load whichever package comes first."""

import pickle
import subprocess
import sys

import pytest
import torch
from tiny import save_tiny
from transformers import AutoModelForCausalLM

import hf_posenc

HEAVY = {"torch", "transformers", "numpy", "datasets", "matplotlib", "rich", "yaml"}
NEEDED = {
    ("--help",): set(),
    ("list",): {"torch", "numpy", "rich"},
    ("describe", "yarn"): {"torch", "numpy"},
    ("describe", "nosuch"): {"torch", "numpy"},
}
PROBE = """
import sys
from hf_posenc.cli import main
try:
    main({words!r})
except SystemExit:
    pass
print(*{heavy!r} & sys.modules.keys())
"""


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("words", NEEDED, ids=" ".join)
def test_a_command_imports_what_it_needs(words):
    imported = python(PROBE.format(words=list(words), heavy=HEAVY)).splitlines()[-1]
    assert set(imported.split()) == NEEDED[words]


def test_an_encoding_of_ones_own_needs_torch_alone():
    code = "import sys; from hf_posenc import PositionalEncoding, register; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert python(code).split() == ["True", "False"]


def test_an_import_adds_a_handful_of_modules_and_a_patch_no_model_code():
    """Beside what a user of transformers has: first with nothing of it used, then with a model at hand."""
    code = "import sys, torch, transformers; has = set(sys.modules); import hf_posenc; print(*sys.modules.keys() - has); "
    code += "from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM; has = set(sys.modules); "
    first, second = python(code + "from hf_posenc import patch, perplexity; print(*sys.modules.keys() - has)").splitlines()
    assert tops(first) == {"hf_posenc", "lazy_loader", "wrapt"} and len(first.split()) <= 30, first
    assert tops(second) <= {"hf_posenc", "transformers"} and "hf_posenc.encodings.bias.alibi" in second.split()
    assert not [name for name in second.split() if name.startswith("transformers.models")]


def tops(modules: str) -> set[str]:
    return {name.partition(".")[0] for name in modules.split()}


ORDERS = {  # each is a new process: two now, the others with the slow tests
    "ours first": "import hf_posenc; from transformers import AutoModelForCausalLM",
    "theirs first, nothing of it": "import transformers, hf_posenc; from transformers import AutoModelForCausalLM",
    "theirs first": "from transformers import AutoModelForCausalLM; import hf_posenc",
    "from inside": "import hf_posenc, transformers.modeling_layers; from transformers import AutoModelForCausalLM",
    "configuration only": "import hf_posenc; from transformers import AutoConfig; AutoConfig.from_pretrained(folder); "
    "from transformers import AutoModelForCausalLM",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path_factory.mktemp("stock")))
    folder = tmp_path_factory.mktemp("patched")
    hf_posenc.patch(model, "alibi").save_pretrained(folder)
    with torch.no_grad():
        return folder, float(model(torch.arange(5, 14)[None]).logits.double().sum())


@pytest.mark.parametrize("order", [pytest.param(order, marks=[pytest.mark.slow] * (at > 1)) for at, order in enumerate(ORDERS)])
def test_a_checkpoint_loads_in_any_order_of_imports(order, saved):
    folder, expected = saved
    code = f"folder = {str(folder)!r}; {ORDERS[order]}; import torch; model = AutoModelForCausalLM.from_pretrained(folder); "
    found = python(code + "print(float(model(torch.arange(5, 14)[None]).logits.double().sum()))")
    assert float(found) == pytest.approx(expected, abs=1e-4)


def test_public_names():
    assert set(hf_posenc.__all__) == set(dir(hf_posenc))
    for name in ("patch", "patched", "unpatch", "inspect", "describe", "list_encodings", "create", "register", "perplexity", "metric_path"):
        assert name in hf_posenc.__all__ and callable(getattr(hf_posenc, name)), name
    assert pickle.loads(pickle.dumps(hf_posenc.patch)) is hf_posenc.patch
    with pytest.raises(AttributeError, match="nosuch"):
        hf_posenc.nosuch  # noqa: B018
