"""Texts as the stages of an encoding see them, in one piece or in several."""

import torch
from torch.nn import functional as F

from hf_posenc.encodings import Text


def text_of(encoding, ids, table=None, first=None, before=None, pos=None):
    """The whole text of `ids` [B,K], or what goes on from the notes `before` [B,n]; a first token depends on none of them."""
    ids = torch.as_tensor(ids)
    first = torch.arange(ids.shape[1]).expand_as(ids) == 0 if first is None else first
    before = torch.full((len(ids), encoding.noted), -2) if before is None else before
    pos = torch.arange(ids.shape[1]).expand_as(ids) if pos is None else pos
    return Text(ids, pos, first, before, lambda ids: F.embedding(ids, table))


def pieces(encoding, ids, steps, stage, table=None, first=None):
    """What `stage` says of a text that comes in pieces of so many tokens, each with the notes of the one before it."""
    first = torch.arange(ids.shape[1]).expand_as(ids) == 0 if first is None else first
    before, found = None, []
    for part, begins in zip(ids.split(steps, 1), first.split(steps, 1), strict=True):
        text = text_of(encoding, part, table, begins, before)
        found.append(stage(text))
        before = encoding.notes(text)[:, -1]
    return torch.cat(found, -1 if found[0].ndim == 2 else 1)
