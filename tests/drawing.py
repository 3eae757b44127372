"""Positions that a scheme draws, counted."""

from collections import Counter

import torch

from hf_posenc.training.schemes import Document


def draws(scheme, length, count, labels=None):
    """[count, length]: for one text, time after time."""
    document = Document(torch.arange(3, 3 + length), None if labels is None else torch.tensor(labels))
    return torch.stack([scheme.draw(document, scheme.generator(torch.tensor([n]))) for n in range(count)])


def chi_squared(found, expected):
    """How far counts are from what is expected of them; all that is found is expected at all."""
    found = Counter(tuple(row.tolist()) if row.ndim else row.item() for row in found)
    total = sum(found.values()) / sum(expected.values())
    assert found.keys() <= {value for value, share in expected.items() if share > 0}
    return sum((found[value] - total * share) ** 2 / (total * share) for value, share in expected.items() if share > 0)
