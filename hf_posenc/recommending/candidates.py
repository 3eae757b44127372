"""What can take a pretrained model further without training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..evaluation.models import Plan, check_live
from ..evaluation.reach import check_position_table
from ..variants import STOCK, name_of, taken

TRIED = (
    *("yarn", "dynamic_ntk", "ntk_by_parts", "rerope", "self_extend", "dual_chunk", "string_shift", "ntk", "dynamic_yarn", "mrrope"),
    *("longrope2", "lampe", "leaky_rerope", "resonance", "ntk_mixed", "dprope", "lm_infinite"),
)
"""In this order: what is known to work best comes first, as the budget may not reach the rest."""
FARTHER = 1.25
"""Times the length that is asked for: a static scheme may be better where it has not reached its end."""
NARROWER = 0.5
"""Times the native context: the window of a remap whose default is nearly all of it."""


def candidates(model: Any, length: int, asked: Plan) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Encodings for a text of `length` tokens with their options, the stock model first, then those asked for; why others are left out.

    Raises:
        ValueError: one that is asked for cannot be patched in.
    """
    check_live(model, asked)
    reaching = {name: {"target_length": length} if "target_length" in taken(name) else {} for name in TRIED if name not in asked}
    found: dict[str, dict[str, Any]] = {}
    refused: dict[str, str] = {}
    for name, options in {STOCK: {}, **asked, **reaching}.items():
        try:
            check_live(model, {name: options})
            if name == STOCK:
                check_position_table(model, length)
            found[name] = dict(options)
        except ValueError as error:
            refused[name] = str(error)
    return found, refused


def variants(plan: Plan, length: int, native: int, asked: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    """Other options of encodings that did well, where nobody asked for these."""
    for label, options in plan.items():
        if label not in TRIED or label in asked:
            continue
        if "target_length" in options:
            yield f"{label}:target_length={(far := round(FARTHER * length))}", {**options, "target_length": far}
        elif "window" in taken(name_of(label)):
            yield f"{label}:window={(near := round(NARROWER * native))}", {**options, "window": near}
