"""The text of a fine-tuning run, packed and mixed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..evaluation.corpus import CorpusError, check_column, embedded_corpus, open_dataset, read_texts
from ..training import pack, unpack
from .arguments import DataArguments, Settings, Source


class Blocks(NamedTuple):
    """Blocks to train on, held-out blocks from the end of the first source, and how much of each source is trained on."""

    train: Any
    test: Any
    mix: str


def load_blocks(settings: Settings, tokenizer: Any) -> Blocks:
    """The text of all sources in blocks, mixed by their shares.

    Raises:
        ValueError: the shares are none.
        CorpusError: there is no text, or not enough of it.
    """
    sources = settings.sources
    packed = [pack_source(source, settings, tokenizer) for source in sources]
    packed[0], test = hold_out(packed[0], settings, sources[0].path or "the text")
    if len(sources) == 1:
        return Blocks(packed[0], test, "")
    counts = blocks_of_each(sources, [len(blocks) for blocks in packed], settings.rows)
    described = [
        f"{source}: {source.share:.1%}, {count:,} of {len(blocks):,} blocks" + f" ({count / len(blocks):.1f} times)" * (count > len(blocks))
        for source, blocks, count in zip(sources, packed, counts, strict=True)
    ]
    return Blocks(mix(packed, counts, settings.training.seed), test, "\n".join(described))


def pack_source(source: Source, settings: Settings, tokenizer: Any) -> Any:
    """The blocks of one source; a `CorpusError` names it."""
    data = settings.data
    texts = load_texts(data, source.path)
    try:
        return pack(texts, tokenizer, data.block_size, data.num_proc, settings.boundaries, source.min_length, source.max_length)
    except CorpusError as error:
        raise CorpusError(f"{source.path}: {error}" if source.path else str(error)) from None


def hold_out(blocks: Any, settings: Settings, name: str) -> tuple[Any, Any]:
    """Blocks without their end, and the end, which has the tokens to evaluate on."""
    size, wanted = settings.data.block_size, settings.evaluation.eval_tokens
    if wanted is None:
        wanted = min(len(blocks) * size // 20, 16384)
    # One block more than the tokens fill, because the last one may be padded.
    kept = len(blocks) - math.ceil(wanted / size) - 1
    if kept < 1:
        available = unpack(blocks).numel()
        raise CorpusError(f"{name} has {available:,} tokens: not enough for a block of {size:,} and {wanted:,} held out")
    test = blocks.select(range(kept, len(blocks)))
    held_out, longest = unpack(test).numel(), settings.eval_lengths[-1]
    if held_out < longest:
        raise CorpusError(
            f"only {held_out:,} tokens of {name} are held out for the test at {longest:,} tokens; raise --eval_tokens or bring more text"
        )
    return blocks.select(range(kept)), test


def blocks_of_each(sources: Sequence[Source], available: Sequence[int], rows: int | None) -> list[int]:
    """How many blocks each source gives to `rows` of all, by its share to within one block.

    A run that is counted in epochs has as many rows as there are before the text of a source would be there twice; texts that are
    replayed may be.
    """
    if rows is None:
        rows = min(int(there / source.share) for source, there in zip(sources, available, strict=True) if not source.replayed)
    ends = np.rint(np.cumsum([source.share for source in sources]) * rows).astype(int)
    return np.diff(ends, prepend=0).tolist()


def mix(packed: Sequence[Any], counts: Sequence[int], seed: int) -> Any:
    """So many blocks of each, in an order that follows the seed; none is there twice before all of its source are there once.

    Exactly so many, as ProLong's streams have it: `interleave_datasets` draws at random, which is by a tenth off in a hundred blocks.
    """
    from datasets import concatenate_datasets

    chosen = [
        blocks.shuffle(seed=seed).select(np.arange(count) % len(blocks)) for blocks, count in zip(packed, counts, strict=True) if count
    ]
    return concatenate_datasets(chosen).shuffle(seed=seed)


def load_texts(data: DataArguments, path: str | None) -> Any:
    """The documents of a file or dataset, or else of --text or what every Python has, in a column "text"."""
    from datasets import Dataset, load_dataset

    files = data.text if path is None else [path] if Path(path).suffix.lower() == ".txt" else []
    if files:
        read_texts(files)  # for its error messages; the rows below are cached on disk, and so is what is made from them
        return load_dataset("text", data_files=files, sample_by="document", split="train")
    if path is None:
        return Dataset.from_dict({"text": [embedded_corpus()]})
    rows = open_dataset(path, data.dataset_config, data.split)
    check_column(rows, path, data.text_column)
    rows = rows.select_columns([data.text_column])
    return rows if data.text_column == "text" else rows.rename_column(data.text_column, "text")
