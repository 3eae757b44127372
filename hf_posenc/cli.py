"""The `hf-posenc` command."""

from __future__ import annotations

import argparse
import pkgutil
import sys
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

from .catalogue import list_encodings
from .command import exit_status, parse_answer

MODEL = "hub id, path, or 'demo'"


ROOMY = 100
"""Columns of a screen on which `list` says all; on others, the first `FEW` things."""
FEW = 3
TRAINING = "training"
"""What `list` takes for a class of encodings: the position schemes, which are there while a model is trained, and are no encodings."""


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand and return its exit status; a mistake of the user is one line on stderr."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]](argv[1:])
    arguments = _parser().parse_args(argv)
    return exit_status(lambda: arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-posenc", description="Positional encodings of Hugging Face models.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, help: str, run: Callable[[argparse.Namespace], None] | None = None) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(run=run)
        return command

    listing = add("list", "all encodings, or those that are as asked, with what they act on", _list)
    for name, answer, help in filters():
        help = f"{help} or {TRAINING!r}, position schemes" if name == "class_" else help
        listing.add_argument(*flags(name.strip("_")), dest=name, help=help, metavar="yes|no" if answer else name.strip("_").upper())
    add("mixes", "all mixes of encodings by layer", _mixes)
    add("models", "all model types that can be patched", _models)
    describing = add("describe", "formula, source, options, properties and cost of one encoding, mix or position scheme", _describe)
    describing.add_argument("encoding", help="name, with options as yarn:factor=4 where a model is given")
    describing.add_argument("--model", help=f"{MODEL}: how far it is from itself right after the patch")
    showing = add("show", "what encodings do to scores and embeddings: one picture, one page", _show)
    showing.add_argument("encoding", nargs="*", help="names, with options as yarn:factor=4; default 'stock', what is live in the model")
    showing.add_argument("--model", help=f"{MODEL}: for its geometry and its learned numbers; default a model that there is not")
    showing.add_argument("--layer", type=int, help="of the model; default the first that has the encoding")
    showing.add_argument(*flags("output_dir"), default="runs/show", help="folder for show.png and show.html; default %(default)s")
    exporting = add("export", "what another library needs to serve a model with its encoding: config, command, GGUF", _export)
    exporting.add_argument("model", help=f"{MODEL}; or a GGUF, which then is written again with other metadata")
    exporting.add_argument("--to", help="transformers, vllm, sglang, llama.cpp or mlx")
    exporting.add_argument("--encoding", default="stock", help="name, with options as yarn:factor=4; default 'stock', what the model has")
    exporting.add_argument("--factor", type=float, help="context extension factor, where the encoding takes one")
    exporting.add_argument(*flags("target_length"), type=int, help="context length to reach in tokens, instead")
    exporting.add_argument(*flags("freeze_at"), type=int, help="length of a text whose frequencies are meant, where they change with it")
    exporting.add_argument("--gguf", help="a GGUF of the base model: --output NEW.gguf has its vocabulary, and the weights of the model")
    exporting.add_argument("--output", help="folder for a checkpoint, or a file that ends in .json (the entries that change) or .gguf")
    exporting.add_argument("--check", action="store_true", help="compare log-probabilities with a server")
    exporting.add_argument("--server", help="address of an OpenAI-compatible server, as http://127.0.0.1:8000")
    exporting.add_argument("--tolerance", type=float, default=0.1, help="nats that a server may be off by; default %(default)s")
    linting = add("lint", "what every engine will make of a config.json, GGUF or training file, and what is lost without a word", _lint)
    linting.epilog = "Exit status: 0 if no finding is an error, 1 if one is, or nothing could be read. No weights are read."
    linting.add_argument("path", help="checkpoint, config.json, GGUF, YAML of Axolotl or LLaMA-Factory, hub id, or 'demo'")
    linting.add_argument("--engine", nargs="+", default=[], help="those that will serve it, as in `export --to`; default all")
    linting.add_argument("--fix", action="store_true", help="write config.json with what is certain, and say what is not")
    linting.add_argument("--output", help="JSON file to write")
    add("inspect", "the positional encoding that is live in a model", _inspect).add_argument("model", help=MODEL)
    add("fetch-demo-model", "download and convert SmolLM2-135M-Instruct once, and print where it is", _fetch)
    for name, command in COMMANDS.items():
        add(name, (command.__doc__ or "").split("\n")[0])
    return parser


def flags(name: str) -> list[str]:
    """The spellings of a flag."""
    return list(dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}"]))


def filters() -> Iterator[tuple[str, bool, str]]:
    """The arguments of `list_encodings`, whether each is a question of yes or no, and what it asks."""
    hints = get_type_hints(list_encodings, include_extras=True)
    for name in signature(list_encodings).parameters:
        yield name, bool in hints[name].__origin__.__args__, hints[name].__metadata__[0]


def _list(arguments: argparse.Namespace) -> None:
    from .catalogue import describe
    from .tables import print_texts, screen

    given: dict[str, Any] = {}
    for name, answer, _ in filters():
        value = getattr(arguments, name)
        given[name] = parse_answer(flags(name)[0], value) if answer and value is not None else value
    if given["class_"] == TRAINING:
        return _list_schemes([flags(name.strip("_"))[0] for name, value in given.items() if value is not None])
    rows = []
    for d in map(describe, list_encodings(**given)):
        acts = ", ".join(d.stages) or "nothing"
        rows.append([d.name, d.summary, "yes" if d.needs_training else "no", d.class_, acts, d.cost])
    header = ["encoding", "what it is", "to be trained", "class", "acts on", "cost"]
    shown = len(header) if screen().width >= ROOMY else FEW
    print_texts(header[:shown], [row[:shown] for row in rows])


def _list_schemes(asked: list[str]) -> None:
    from .tables import print_texts
    from .training import describe_scheme, list_schemes

    if len(asked) > 1:
        raise ValueError(f"position schemes are no encodings, and have no {asked[1]}: leave it out")
    print_texts(["scheme", "what it is"], [[d.name, d.summary] for d in map(describe_scheme, list_schemes())])


def _mixes(arguments: argparse.Namespace) -> None:
    from .catalogue import describe, list_mixes
    from .tables import print_texts

    print_texts(["mix", "what it is"], [[d.name, d.summary] for d in map(describe, list_mixes())])


def _models(arguments: argparse.Namespace) -> None:
    from .catalogue import list_model_types

    print(*list_model_types(), sep="\n")


def _describe(arguments: argparse.Namespace) -> None:
    from .catalogue import describe

    label, options = arguments.encoding, dict[str, Any]()
    name = label.partition(":")[0]
    if _is_scheme(name):
        return _describe_scheme(name, bool(arguments.model) or label != name)
    if arguments.model or ":" in label:
        from .variants import read_plan

        ((label, options),) = read_plan([label]).items()
    print(describe(label.partition(":")[0], **{option: value for option, value in options.items() if option != "layers"}))
    if arguments.model:
        from .evaluation.demo_model import resolve_model
        from .evaluation.warm_start import warm_start_of

        print(warm_start_of(resolve_model(arguments.model), label, options))


def _is_scheme(name: str) -> bool:
    """Whether there is such a position scheme. Each has a file of its name, and to import them all takes a while."""
    folder = Path(__file__).parent / "training" / "schemes"
    return name in {module.name for module in pkgutil.iter_modules([str(folder)])}


def _describe_scheme(name: str, more: bool) -> None:
    from .training import describe_scheme

    if more:
        raise ValueError(f"{name!r} is a position scheme for training: it is described without options and without --model")
    print(describe_scheme(name))


def _show(arguments: argparse.Namespace) -> None:
    from .showing import show
    from .variants import read_plan

    plan, model = read_plan(arguments.encoding), None
    if arguments.model:
        from .evaluation.demo_model import resolve_model
        from .evaluation.models import load

        model = load(resolve_model(arguments.model), device="cpu")
    shown = show(plan, model, layer=arguments.layer, output_dir=arguments.output_dir)
    print(shown.png, shown.html, sep="\n")


def _export(arguments: argparse.Namespace) -> None:
    from .exporting.cli import run

    run(arguments)


def _lint(arguments: argparse.Namespace) -> None:
    from .linting.cli import run

    run(arguments)


def _inspect(arguments: argparse.Namespace) -> None:
    from .evaluation.demo_model import resolve_model
    from .evaluation.models import read_model
    from .inspection import inspect

    print(inspect(read_model(resolve_model(arguments.model), dtype="auto")))


def _fetch(arguments: argparse.Namespace) -> None:
    from .evaluation.demo_model import fetch_demo_model

    print(fetch_demo_model())


def _perplexity(argv: list[str]) -> int:
    """perplexity against length, several encodings side by side (recipes/perplexity.py)"""
    from .evaluation.perplexity.cli import main

    return main(argv)


def _passkey(argv: list[str]) -> int:
    """find a number in the context, by length and depth (recipes/passkey.py)"""
    from .evaluation.retrieval.passkey_cli import main

    return main(argv)


def _retrieval(argv: list[str]) -> int:
    """does it use its context? RULER and other tasks by length (recipes/retrieval.py)"""
    from .evaluation.retrieval.cli import main

    return main(argv)


def _eval(argv: list[str]) -> int:
    """tasks of lm-eval, several encodings side by side"""
    from .evaluation.harness.cli import main

    return main(argv)


def _recommend(argv: list[str]) -> int:
    """which encoding takes a model to a length without training, measured within a budget of time?"""
    from .recommending.cli import main

    return main(argv)


def _search(argv: list[str]) -> int:
    """factors of the rotation for a length, by the evolutionary searches of LongRoPE and LongRoPE2"""
    from .searching.cli import main

    return main(argv)


def _finetune(argv: list[str]) -> int:
    """fine-tune a patched model with Trainer (recipes/finetune.py)"""
    from .finetuning import main

    return main(argv)


def _compare(argv: list[str]) -> int:
    """train short, test long: several encodings on one small model (recipes/compare.py)"""
    from .comparison import main

    return main(argv)


def _doctor(argv: list[str]) -> int:
    """what is wrong with a model, what would encodings do in it, and do they on this machine?"""
    from .doctor import main

    return main(argv)


RECIPES: dict[str, Callable[[list[str]], int]] = {
    "compare": _compare,
    "perplexity": _perplexity,
    "passkey": _passkey,
    "retrieval": _retrieval,
    "finetune": _finetune,
}
COMMANDS = RECIPES | {"doctor": _doctor, "eval": _eval, "recommend": _recommend, "search": _search}
"""Those that read their own flags."""

if __name__ == "__main__":
    sys.exit(main())
