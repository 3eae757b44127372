"""No module of the package depends on one that depends on it, not even for a type or inside a function."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

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
