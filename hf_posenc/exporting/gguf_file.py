"""GGUF files: the rotation that one has, and the same file with another."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..encodings import Geometry, create
from ..extras import extra
from ..files import check_writable
from .base import Export
from .rotation import BEYOND, Rotation, is_table, turned

TABLE = "rope_freqs.weight"
TABLES = (TABLE, "rope_factors_long.weight", "rope_factors_short.weight")


def open_gguf(path: str | os.PathLike) -> Any:
    """A reader of the file.

    Raises:
        MissingExtra: `gguf` is not installed.
        ValueError: it is no GGUF, or one part of several.
    """
    with extra("gguf"):
        import gguf
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} is no GGUF file: {error}") from None
    if said(reader, "split.count", 1) > 1:
        raise ValueError(f"{path} is one part of several: merge them first (llama-gguf-split --merge)")
    return reader


def said(reader: Any, key: str, otherwise: Any = None) -> Any:
    """The value of a key of the metadata."""
    field = reader.get_field(key)
    return otherwise if field is None else field.contents()


def architecture_of(reader: Any) -> str:
    return said(reader, "general.architecture")


def rotation_of_gguf(reader: Any, encoding: str = "rope", freeze_at: int | None = None, **options: Any) -> Rotation:
    """The rotation that an encoding is in the model of a GGUF, without the model.

    Raises:
        ValueError: it is scaled already, or the encoding is no rotation.
    """
    geometry = geometry_of_gguf(reader)
    if scaled(reader):
        raise ValueError("the GGUF scales its rotation already: start from one of the model as it came")
    made = create(encoding, geometry, **options)
    if not is_table(made):
        raise ValueError(f"{encoding!r} {BEYOND}")
    rotation = Rotation(
        name=encoding,
        geometry=geometry,
        config={"model_type": architecture_of(reader)},
        frequencies=torch.zeros(geometry.rotary_dim // 2),
        attention_factor=1.0,
        parameters=None,
        context_length=made.context_length or geometry.max_positions,
    )
    return turned(rotation, made, freeze_at)


def geometry_of_gguf(reader: Any) -> Geometry:
    """What an encoding may know about the model of a GGUF.

    Raises:
        ValueError: it has no rotation that is known here.
    """
    name = architecture_of(reader)
    heads, width = said(reader, f"{name}.attention.head_count"), said(reader, f"{name}.embedding_length")
    if not isinstance(heads, int) or not any(key.startswith(f"{name}.rope.") for key in reader.fields):
        raise ValueError(f"no one rotation is known for the {name} model of the GGUF")
    head_dim = said(reader, f"{name}.attention.key_length", width // heads)
    return Geometry(
        hidden_size=width,
        num_heads=heads,
        num_kv_heads=said(reader, f"{name}.attention.head_count_kv", heads),
        head_dim=head_dim,
        rotary_dim=said(reader, f"{name}.rope.dimension_count", head_dim),
        theta=said(reader, f"{name}.rope.freq_base", 10_000.0),
        max_positions=said(reader, f"{name}.context_length"),
        num_layers=said(reader, f"{name}.block_count"),
    )


def scaled(reader: Any) -> bool:
    """Whether a GGUF says more of its rotation than a base."""
    name = architecture_of(reader)
    stretched = said(reader, f"{name}.rope.scaling.type", "none") != "none" and said(reader, f"{name}.rope.scaling.factor", 1.0) != 1.0
    return stretched or any(tensor.name in TABLES for tensor in reader.tensors)


def check_same_model(reader: Any, rotation: Rotation) -> None:
    """Raise ValueError where a GGUF is of another model than the rotation."""
    theirs, ours = geometry_of_gguf(reader), rotation.geometry
    for name in ("hidden_size", "num_heads", "num_kv_heads", "rotary_dim", "num_layers", "theta"):
        if getattr(theirs, name) != getattr(ours, name):
            raise ValueError(
                f"the GGUF is of another model: its {name} is {getattr(theirs, name)}, that of the model {getattr(ours, name)}"
            )


def write_gguf(reader: Any, exported: Export, output: str | os.PathLike, weights: Mapping[str, Tensor] | None = None) -> Path:
    """The file of `reader` with the rotation of `exported`, and all other metadata as they are.

    Args:
        weights: of a model of the same shapes, by their names in transformers, instead of those of the file.
    """
    with extra("gguf"):
        import gguf

    output = Path(output)
    check_writable(output.parent, "--output")
    output.parent.mkdir(parents=True, exist_ok=True)
    name = architecture_of(reader)
    tensors = {tensor.name: (tensor.data, tensor.tensor_type) for tensor in reader.tensors if tensor.name not in TABLES}
    changed = dict.fromkeys(key for key in reader.fields if key.startswith(f"{name}.rope.scaling.")) | exported.fields
    if weights is not None:
        tensors = renamed(weights, reader, tensors)
        changed["general.file_type"] = None  # that of the weights which were there
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}") as scratch:
        writer = gguf.GGUFWriter(Path(scratch) / output.name, name)
        writer.data_alignment = said(reader, "general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
        copy_metadata(reader, writer, changed)
        if exported.table is not None:
            writer.add_tensor(TABLE, exported.table.numpy())
        for tensor, (data, kind) in tensors.items():
            writer.add_tensor(tensor, data, raw_shape=data.shape, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(Path(scratch) / output.name, output)
    return output


def renamed(weights: Mapping[str, Tensor], reader: Any, theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The weights of a model under the names, and in the order of rows, of a GGUF; matrices in the precision that they have here.

    Raises:
        ValueError: architectures whose weights are laid out otherwise, or of another shape than in the file.
    """
    with extra("gguf"):
        import gguf

    architecture = architecture_of(reader)
    if architecture not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise ValueError(
            f"how the weights of {architecture!r} lie in a GGUF is not known here ({known} are): convert the model with llama.cpp"
        )
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    shapes = {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in reader.tensors}
    names = gguf.get_tensor_name_map(kind, said(reader, f"{architecture}.block_count"))
    heads = {
        "q_proj": said(reader, f"{architecture}.attention.head_count"),
        "k_proj": said(reader, f"{architecture}.attention.head_count_kv"),
    }
    kinds = {torch.float16: gguf.GGMLQuantizationType.F16, torch.bfloat16: gguf.GGMLQuantizationType.BF16}
    found: dict[str, tuple[Any, Any]] = {}
    seen: set[int] = set()
    for name, weight in weights.items():
        called, projection = names.get_name(name, try_suffixes=(".weight", ".bias")), name.split(".")[-2]
        if called is None or called not in theirs:
            if weight.data_ptr() in seen:  # tied, and once in the file
                continue
            raise ValueError(f"the GGUF has no tensor for {name}: it is of another model")
        seen.add(weight.data_ptr())
        as_it_is = kinds.get(weight.dtype, gguf.GGMLQuantizationType.F32) if weight.ndim > 1 else gguf.GGMLQuantizationType.F32
        if LAYOUTS[architecture] and projection in heads:
            weight = weight.unflatten(0, (heads[projection], 2, -1)).transpose(1, 2).flatten(0, 2)
        if tuple(weight.shape) != (shape := shapes[called]):
            raise ValueError(f"{name} is {list(weight.shape)} in the model and {list(shape)} in the GGUF: it is of another model")
        found[called] = gguf.quants.quantize(weight.detach().to("cpu", torch.float32).contiguous().numpy(), as_it_is), as_it_is
    if missing := sorted(set(theirs) - set(found)):
        raise ValueError(f"the model has no weights for {missing[0]} of the GGUF: it is of another model")
    return found


LAYOUTS = {"llama": True, "qwen2": False, "qwen3": False}
"""Architectures whose weights are those of transformers, and whether rows of queries and keys lie in pairs there, (0, 1), (2, 3) ..."""


def copy_metadata(reader: Any, writer: Any, changed: Mapping[str, Any]) -> None:
    """All metadata, in their types; those of `changed` as they are there, without those that are None."""
    with extra("gguf"):
        import gguf

    kinds = {str: gguf.GGUFValueType.STRING, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32}
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture" and key not in changed:
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub_type=inner)
    for key, value in changed.items():
        if value is not None:
            writer.add_key_value(key, value, kinds[type(value)])
