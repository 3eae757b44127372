"""One configuration, and what transformers and each engine make of it."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME

from ..architectures.slots import Group
from ..compat import nested_keys
from ..doctor.faults import Fault, logged, one_line
from ..doctor.reading import Ill, Source
from ..encodings import Geometry
from ..exporting import ENGINES, Reading
from ..exporting.rotation import geometries_of
from ..patching import patch_of
from .finding import Place

TRANSFORMERS = "transformers"
WRITTEN = ("rope_scaling", "rope_parameters")
"""Where a configuration speaks of its rotation: the names of transformers 4 and 5."""
TEXT = "text_config"
UNREAD = "it has code of its own for families with layers of several kinds, which is not read here"


@dataclasses.dataclass(frozen=True)
class Served:
    """What an engine makes of the layers of one kind.

    Args:
        engine: its name. layers: of which kind; empty where all are of one.
        reading: what it computes; None where that is no one rotation, and `refusal` says why. unread: what it does is not known here.
    """

    engine: str
    layers: str
    reading: Reading | None
    refusal: str = ""
    unread: bool = False


@dataclasses.dataclass(frozen=True)
class Case:
    """A configuration.

    Args:
        entries: as they are written, of the part that is about text. place: of that part in the file.
        geometries: what transformers makes of it, by kind of layers; where it makes nothing, what it would without the scaling.
        built: transformers makes a model of it. faults: why not, and what the doctor says of the scaling.
        live: patches of hf_posenc that the checkpoint has. ignored: kinds of layers that have parameters, and are not in the model.
    """

    entries: Mapping[str, Any]
    place: Place
    geometries: Mapping[Group, Geometry]
    built: bool
    faults: Sequence[Fault]
    live: Sequence[str] = ()
    ignored: Sequence[str] = ()

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> Case:
        """What becomes of a config.json with these entries."""
        place = (TEXT,) if isinstance(entries.get(TEXT), Mapping) else ()
        text = entries[TEXT] if place else entries
        found = Examined(entries)
        geometries, built = found.geometries, found.geometries is not None
        if geometries is None:
            plain = {key: value for key, value in text.items() if key not in WRITTEN}
            bare = Examined({**entries, TEXT: plain} if place else plain).geometries or {}
            said = tuple(scaling(text).items())
            geometries = {group: dataclasses.replace(geometry, rope_parameters=said) for group, geometry in bare.items()}
        return cls(text, place, geometries, built, found.faults, found.live, found.ignored)

    @property
    def nested(self) -> bool:
        """Layers of several kinds turn differently, or are said to."""
        return any(isinstance(value, Mapping) for parameters in said_in(self.entries).values() for value in parameters.values())

    def declares(self, name: str) -> bool:
        """Whether the class of the configuration has an entry of that name."""
        kind = str(self.entries.get("model_type"))
        return kind in CONFIG_MAPPING and hasattr(CONFIG_MAPPING[kind], name)

    def serve(self, engines: Sequence[str]) -> Iterator[Served]:
        """What engines make of it; nothing is known where transformers makes nothing of layers of several kinds."""
        for name in engines if self.built or not self.nested else ():
            for group, geometry in self.geometries.items():
                yield self._read(name, group, geometry)

    def _read(self, name: str, group: Group, geometry: Geometry) -> Served:
        layers = group or ""
        if name == TRANSFORMERS and not self.built:
            return Served(name, layers, None, " ".join(["it builds no model:", *(fault.what for fault in self.faults[-1:])]))
        if group and not ENGINES[name].by_kind:
            return Served(name, layers, None, UNREAD, unread=True)
        config = {"max_position_embeddings": geometry.max_positions} | dict(self.entries)
        config |= {WRITTEN[1]: {group: dict(geometry.rope_parameters)}} if group else {}
        try:
            return Served(name, layers, ENGINES[name]().serve(config, geometry))
        except NotImplementedError as error:
            return Served(name, layers, None, one_line(error), unread=True)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return Served(name, layers, None, f"{one_line(error)} is missing" if isinstance(error, KeyError) else one_line(error))


class Examined:
    """A config.json as transformers reads it.

    Attributes:
        faults: what the doctor finds. live: patches of ours. ignored: kinds of layers that have parameters, and are not in the model.
        geometries: rotations of the model that transformers builds; None where it builds none.
    """

    def __init__(self, entries: Mapping[str, Any]):
        self.faults, self.live, self.ignored = list[Fault](), list[str](), list[str]()
        self.geometries: Mapping[Group, Geometry] | None = None
        with tempfile.TemporaryDirectory() as folder, logged("transformers.modeling_rope_utils"):
            (Path(folder) / CONFIG_NAME).write_text(json.dumps(entries, default=str), encoding="utf-8")
            try:
                source = Source(folder)
                self.faults, self.live = source.faults, source.live
                self.ignored = ignored_in(source.config.get_text_config(decoder=True))
                self.geometries = self._turning(source.skeleton())
            except Ill as ill:
                self._refused(ill.fault)
            except Exception as error:  # whatever a class makes of entries that it does not look for
                self._refused(Fault("configuration", f"transformers makes nothing of it: {one_line(error)}", "mend it in config.json"))

    def _refused(self, fault: Fault) -> None:
        if not any(known.grave for known in self.faults):  # which is why
            self.faults.append(fault)

    def _turning(self, model: PreTrainedModel) -> Mapping[Group, Geometry]:
        """The rotations of a model; none where its family is not known here."""
        try:
            record = patch_of(model)
        except ValueError as error:
            advice = "`hf-posenc models` lists the families whose rotation is known here"
            self.faults.append(Fault("configuration", one_line(error), advice, False))
            return {}
        return geometries_of(record)


def ignored_in(config: PretrainedConfig) -> list[str]:
    """Kinds of layers that have parameters, and are not in the model; they are taken out, as transformers looks over them."""
    parameters = getattr(config, "rope_parameters", None) or {}
    known = nested_keys(config, parameters)
    ignored = [key for key, value in parameters.items() if isinstance(value, Mapping) and key not in known]
    for key in ignored:
        del parameters[key]
    return ignored


def said_in(entries: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The parameters of rotations that are written down, by the name of the entry."""
    return {name: entries[name] for name in WRITTEN if isinstance(entries.get(name), Mapping) and entries[name]}


def parts(entries: Mapping[str, Any]) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """The parameters of each rotation, with where they stand."""
    for name, parameters in said_in(entries).items():
        nested = {key: value for key, value in parameters.items() if isinstance(value, Mapping)}
        yield from (((name, key), value) for key, value in nested.items()) if nested else [((name,), parameters)]


def scaling(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that transformers takes, of those that are written down."""
    parameters = dict(next(iter(said_in(entries).values()), {}))
    return {"rope_type": kind_of(parameters), "rope_theta": entries.get("rope_theta")} | parameters


def kind_of(parameters: Mapping[str, Any]) -> str:
    """The name of a scheme, as transformers looks for it."""
    return str(parameters.get("rope_type") or parameters.get("type") or "default")
