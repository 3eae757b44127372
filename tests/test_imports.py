"""No module of the package depends on one that depends on it, not even for a type or inside a function."""

import ast
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hf_posenc

ROOT = Path(hf_posenc.__file__).parent
MODULES = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path for path in ROOT.rglob("*.py")}


def imported(module: str, path: Path) -> set[str]:
    """The modules of the package that `module` imports from, wherever in the file it does."""
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            source = ".".join([*parts[: len(parts) - node.level + 1], node.module or ""]).rstrip(".") if node.level else node.module
            found |= {name if (name := f"{source}.{alias.name}") in MODULES else source for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & set(MODULES)) - {module}


def test_modules_do_not_import_each_other_in_a_circle():
    graph = {module: imported(module, path) for module, path in MODULES.items()}
    assert {"hf_posenc.patching.verbs", "hf_posenc.attention.hooks"} <= graph.keys() and any(graph.values())
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_encodings_know_no_transformers_and_no_model():
    """What computes a formula must not know where it is used."""
    for module, path in MODULES.items():
        if module.startswith("hf_posenc.encodings"):
            assert imported(module, path) <= {m for m in MODULES if m.startswith(("hf_posenc.encodings", "hf_posenc.registry"))}, module
            assert "transformers" not in path.read_text(encoding="utf-8").split("import", 1)[-1].split("\n\n")[0], module


def test_what_perplexity_and_retrieval_share_knows_neither_and_they_do_not_know_each_other():
    kinds = ("hf_posenc.evaluation.perplexity", "hf_posenc.evaluation.retrieval")
    assert all(kind in MODULES for kind in kinds)
    for module, path in MODULES.items():
        if module.startswith("hf_posenc.evaluation."):
            others = [kind for kind in kinds if not module.startswith(kind)]
            assert not [each for each in imported(module, path) if each.startswith(tuple(others))], module


def test_a_library_is_required_or_its_import_names_the_extra_that_brings_it():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required, extras = names(project["dependencies"]), {extra: names(given) for extra, given in project["optional-dependencies"].items()}
    found = {}
    for path in (*ROOT.rglob("*.py"), *(ROOT.parent / "recipes").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        within = {id(node): block for block in ast.walk(tree) if isinstance(block, ast.With) for node in ast.walk(block)}
        for node in ast.walk(tree):
            for library in libraries(node) - required:
                found.setdefault(library, set()).add(extra_of(within.get(id(node))))
    brought = {library: {extra for extra in extras if library in extras[extra]} for library in found}
    assert found == brought | {"flash_attn": {None}} and {"matplotlib", "jinja2", "gguf", "peft", "trl"} < set(found)  # used where it is


def names(requirements):
    return {re.match(r"[\w-]+", each)[0].replace("-", "_") for each in requirements}


def libraries(node):
    """The distributions that an import statement needs, but for Python's own and ours."""
    sources = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    sources += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
    top = {source.partition(".")[0] for source in sources} - {*sys.stdlib_module_names, "hf_posenc"}
    return {{"yaml": "pyyaml"}.get(name, name) for name in top}


def extra_of(block):
    """NAME in `with extra(NAME)`."""
    call = block.items[0].context_expr if block else None
    return call.args[0].value if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "extra" else None
