"""Files that say something of a rotation, and the configuration that a model has by them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.utils import CONFIG_NAME

from ..evaluation.demo_model import resolve_model
from . import axolotl, llama_factory
from .finding import Finding

GGUF = "GGUF"
TRAINING: dict[str, tuple[str, Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[dict[str, Any], list[Finding]]]]] = {
    "base_model": ("Axolotl", axolotl.trained),
    "model_name_or_path": ("LLaMA-Factory", llama_factory.trained),
}
"""How a training file names its model: whose file it is, and what the model is trained with by it."""


@dataclasses.dataclass(frozen=True)
class Document:
    """A file, or a configuration in memory.

    Args:
        name: as it was given. kind: "config.json", "GGUF", "Axolotl" or "LLaMA-Factory".
        path: of the file; None where there is none here.
        entries: of the configuration that a model has by it; none for a GGUF. findings: in what else it says.
    """

    name: str
    kind: str
    path: Path | None
    entries: Mapping[str, Any]
    findings: Sequence[Finding] = ()


def read(given: Any) -> Document:
    """What a path, a hub id, a configuration, or the entries of one say.

    Raises:
        ValueError: a file that is none of these. OSError: there is nothing of that name.
    """
    if isinstance(given, PretrainedConfig):
        return Document(type(given).__name__, CONFIG_NAME, None, given.to_dict())
    if isinstance(given, Mapping):
        return Document("entries", CONFIG_NAME, None, dict(given))
    name = resolve_model(str(given))
    path = Path(name) / CONFIG_NAME if Path(name).is_dir() else Path(name)
    if path.suffix == ".gguf":
        return Document(str(given), GGUF, path, {})
    if path.suffix in (".yaml", ".yml"):
        return of_training(str(given), path)
    if path.is_file():
        return Document(str(given), CONFIG_NAME, path, mapping(path, json.loads))
    if path.name == CONFIG_NAME:
        raise FileNotFoundError(f"there is no {CONFIG_NAME} in {given}: name a checkpoint, a GGUF, or a training file (YAML)")
    return Document(name, CONFIG_NAME, None, entries_of(name))


def of_training(name: str, path: Path) -> Document:
    """A file of Axolotl or LLaMA-Factory, and the configuration that the model is trained with."""
    import yaml

    said = mapping(path, yaml.safe_load)
    for key, (kind, trained) in TRAINING.items():
        if said.get(key):
            entries, findings = trained(said, entries_of(resolve_model(str(said[key]))))
            return Document(name, kind, path, entries, findings)
    raise ValueError(f"{name} names no model: {' or '.join(f'{key} ({kind})' for key, (kind, _) in TRAINING.items())}")


def entries_of(name: str) -> dict[str, Any]:
    """The config.json of a path or hub id."""
    return PretrainedConfig.get_config_dict(name)[0]


def mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The entries of a file.

    Raises:
        ValueError: it cannot be read, or holds none.
    """
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except OSError:
        raise
    except Exception as error:  # of either parser
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no entries, but a {type(found).__name__}")
    return found
