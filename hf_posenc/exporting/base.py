"""What an engine is: what it reads of a configuration, and how it is told of a rotation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor

from ..encodings import Geometry
from ..encodings.rotary.rope import is_fixed
from ..registry import Registry
from .rotation import Rotation, geometry_of
from .schemes import factors_of, theta_of

ENGINES: Registry[type[Engine]] = Registry("engine")
register = ENGINES.register

TOLERANCE = 5e-7
"""Between frequencies here and there, relative: both round to float32, in another order."""
Entries = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Reading:
    """What an engine makes of a configuration.

    Args:
        frequencies: [r/2] float32, radians per token.
        attention_factor: factor on cos and sin.
        context_length: tokens that it serves unless it is told otherwise.
    """

    frequencies: Tensor
    attention_factor: float
    context_length: int

    def differs(self, rotation: Rotation | Reading) -> str:
        """Where this is another rotation, in words; empty if it is the same."""
        if len(self.frequencies) != len(rotation.frequencies):
            return f"{len(self.frequencies)} pairs turn, not {len(rotation.frequencies)}"
        off = (self.frequencies - rotation.frequencies).abs() > TOLERANCE * rotation.frequencies
        if bool((off & (rotation.frequencies > 0) | (rotation.frequencies == 0) & (self.frequencies > 1e-12)).any()):
            worst = (self.frequencies / rotation.frequencies).log().abs().nan_to_num(posinf=0).max().exp()
            return f"frequencies are off by up to a factor of {float(worst):.3g}"
        if abs(self.attention_factor - rotation.attention_factor) > TOLERANCE * rotation.attention_factor:
            return f"the factor on cos and sin is {self.attention_factor:.6g}, not {rotation.attention_factor:.6g}"
        if self.context_length != rotation.context_length:
            return f"the context is {self.context_length} tokens, not {rotation.context_length}"
        return ""


@dataclasses.dataclass(frozen=True)
class Export:
    """What an engine needs for an encoding.

    Attributes:
        engine: its name; read_in: the version whose source says so.
        encoding: name of the encoding.
        carried: how: under the engine's own name for the scheme, or as a table of frequencies.
        fields: entries of config.json that change, for llama.cpp metadata of the GGUF.
        command: words of the command that serves a checkpoint as it is; empty where the entries must be in the file.
        notes: what else is to be known.
        table: frequencies as factors [r/2] on those of freq_base, for a tensor of a GGUF; None where there is none.
    """

    engine: str
    read_in: str
    encoding: str
    carried: str
    fields: Entries
    command: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    table: Tensor | None = None

    def __str__(self) -> str:
        lines = [f"{self.engine} ({self.read_in}): {self.encoding!r} is carried {self.carried}", json.dumps(self.fields, indent=2)]
        if self.command:
            lines += ["", " ".join(self.command)]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


class Engine:
    """A library that serves models, and reads their configuration in a way of its own."""

    name: ClassVar[str]
    read_in: ClassVar[str]
    """The version whose source this was written from."""
    by_kind: ClassVar[bool] = True
    """Layers of several kinds are read as those of one; if not, by code for each family that was not read."""
    rounds_tables: ClassVar[bool] = False
    """It rounds cos and sin to the dtype of the model, on a GPU."""
    table_by_halves: ClassVar[bool] = True
    """A table of frequencies, told as LongRoPE with the same factors for short and long texts, needs pairs (0, r/2), (1, r/2 + 1) ..."""

    def read(self, config: Mapping[str, Any], geometry: Geometry) -> Reading:
        """What the engine makes of the entries of a config.json, of which transformers makes `geometry`.

        Raises:
            ValueError: it refuses them.
        """
        raise NotImplementedError

    def serve(self, config: Mapping[str, Any], geometry: Geometry) -> Reading:
        """What becomes of a checkpoint there; as `read`, where config.json itself is read.

        Raises:
            ValueError: it refuses it. NotImplementedError: what it does was not read.
        """
        return self.read(config, geometry)

    def told(self, rotation: Rotation, parameters: Entries) -> Entries:
        """Entries of config.json that tell the engine of a rotation by a scheme of transformers."""
        raise NotImplementedError

    def command(self, rotation: Rotation, fields: Entries) -> tuple[str, ...]:
        """The command that tells it without another file."""
        return ()

    def notes(self, rotation: Rotation, fields: Entries) -> tuple[str, ...]:
        """What else is to be known."""
        return ()

    def export(self, rotation: Rotation) -> Export:
        """What the engine needs for a rotation: the first way of telling it that it reads as what is meant.

        Raises:
            ValueError: there is none, and why.
        """
        faults = []
        for how, parameters in self.ways(rotation):
            fields = self.told(rotation, parameters)
            config = {**rotation.config, **fields}
            try:
                fault = self.read(config, geometry_of(config)).differs(rotation)
            except ValueError as error:
                fault = str(error)
            if not fault:
                command, notes = self.command(rotation, fields), self.notes(rotation, fields)
                return Export(self.name, self.read_in, rotation.name, how, fields, command, notes)
            faults.append(f"{how}: {fault}")
        raise ValueError(f"it has no way to compute {rotation.name!r} in this model ({'; '.join(faults)})")

    def ways(self, rotation: Rotation) -> Iterator[tuple[str, Entries]]:
        """Entries of `rope_parameters` that may say the rotation, the plainest first."""
        geometry, plain = rotation.geometry, {"rope_theta": rotation.geometry.theta}
        kept = {key: value for key, value in geometry.rope_parameters if key == "partial_rotary_factor"}
        frozen = "" if rotation.frozen_at is None else f", frozen at {rotation.frozen_at} tokens"
        if rotation.parameters is not None:
            yield f"as {rotation.parameters['rope_type']!r}", kept | dict(rotation.parameters)
        if theta := theta_of(rotation.frequencies):
            yield f"as another theta{frozen}", kept | {"rope_type": "default", "rope_theta": theta}
        if not (self.table_by_halves and geometry.interleaved):
            factors = factors_of(rotation.frequencies, geometry)
            table = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors}
            lengths = {"original_max_position_embeddings": rotation.native_length, "factor": stretch_of(rotation)}
            yield f"as a table{frozen}", kept | plain | table | lengths | {"attention_factor": rotation.attention_factor}


def stretch_of(rotation: Rotation) -> float:
    """Context over native context."""
    return rotation.context_length / rotation.native_length


def check_one_table(parameters: Mapping[str, Any], geometry: Geometry) -> None:
    """Raise ValueError for what vLLM and SGLang, which have one table of frequencies, read as another than is meant."""
    kind = parameters.get("rope_type", "default")
    if not is_fixed(parameters):
        raise ValueError(f"{kind!r} is one table there, chosen by the length that is served: frozen, and as no length here has it")
    if kind == "longrope" and geometry.interleaved:
        raise ValueError("a table is read for rotations by halves alone")
