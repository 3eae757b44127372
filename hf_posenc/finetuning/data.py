"""The text of a fine-tuning run, packed."""

from __future__ import annotations

import math
from typing import Any

from ..evaluation.corpus import CorpusError, check_column, embedded_corpus, open_dataset, read_texts
from ..training import pack, unpack
from .arguments import DataArguments, Settings


def load_blocks(settings: Settings, tokenizer: Any) -> tuple[Any, Any]:
    """Blocks to train on, and held-out blocks from the end of the text.

    Raises:
        CorpusError: there is no text, or not enough of it.
    """
    data, wanted = settings.data, settings.evaluation.eval_tokens
    blocks = pack(load_texts(data), tokenizer, data.block_size, data.num_proc, settings.boundaries)
    if wanted is None:
        wanted = min(len(blocks) * data.block_size // 20, 16384)
    # One block more than the tokens fill, because the last one may be padded.
    kept = len(blocks) - math.ceil(wanted / data.block_size) - 1
    if kept < 1:
        available = unpack(blocks).numel()
        raise CorpusError(f"the text has {available:,} tokens: not enough for a block of {data.block_size:,} and {wanted:,} held out")
    test = blocks.select(range(kept, len(blocks)))
    held_out, longest = unpack(test).numel(), settings.eval_lengths[-1]
    if held_out < longest:
        raise CorpusError(
            f"only {held_out:,} tokens are held out for the test at {longest:,} tokens; raise --eval_tokens or bring more text"
        )
    return blocks.select(range(kept)), test


def load_texts(data: DataArguments) -> Any:
    """The documents, in a column "text"."""
    from datasets import Dataset, load_dataset

    if data.text:
        read_texts(data.text)  # for its error messages; the rows below are cached on disk, and so is what is made from them
        return load_dataset("text", data_files=data.text, sample_by="document", split="train")
    if data.dataset is None:
        return Dataset.from_dict({"text": [embedded_corpus()]})
    rows = open_dataset(data.dataset, data.dataset_config, data.split)
    check_column(rows, data.dataset, data.text_column)
    rows = rows.select_columns([data.text_column])
    return rows if data.text_column == "text" else rows.rename_column(data.text_column, "text")
