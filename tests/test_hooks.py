"""What the hooks of a backbone know of positions without looking at them."""

import pytest
import torch
from tiny import tiny_model
from torch import nn
from transformers import DynamicCache, StaticCache
from waiting import LOOKS, Calls

from hf_posenc.architectures import Architecture
from hf_posenc.attention.documents import DocumentMasks
from hf_posenc.attention.hooks import BackbonePositions
from hf_posenc.attention.positions import COUNTED, bound, resolve
from hf_posenc.attention.settled import Settled
from hf_posenc.encodings import Geometry, create

CONFIG = tiny_model("llama").config
TABLE = 20
"""Positions that the encoding has."""


def cache_of(kind, tokens):
    if kind is None:
        return None
    cache = DynamicCache(config=CONFIG) if kind == "dynamic" else StaticCache(config=CONFIG, max_cache_len=TABLE)
    if tokens:
        for layer in range(CONFIG.num_hidden_layers):
            cache.update(*(torch.zeros(2, 2, tokens, 16) for _ in range(2)), layer)
    return cache


def call(kind=None, past=0, queries=1, positions=None, mask=None, device="meta"):
    """Arguments of a backbone whose tokens are on `device`."""
    tokens = torch.zeros(2, queries, dtype=torch.long, device=device)
    position_ids = None if positions is None else torch.as_tensor(positions, device=device).expand(2, queries)
    attention_mask = None if mask is None else torch.ones(2, mask, dtype=torch.long, device=device)
    return {"input_ids": tokens, "position_ids": position_ids, "attention_mask": attention_mask, "past_key_values": cache_of(kind, past)}


class Native:
    """A placement in the native slot: the hook leaves the embedding to the model."""

    native, attribute = True, ""

    def __init__(self, encoding):
        self.encoding = encoding


def settle(arguments):
    encoding = create("learned", Geometry(32, 4, max_positions=TABLE))
    settled = Settled()
    hook = BackbonePositions(["input_ids", "position_ids"], [Native(encoding)], settled, Architecture().hand_down, None)
    with torch.no_grad():
        given = hook(nn.Module().eval(), (), dict(arguments))[1]["position_ids"]
    assert settled.pos is given
    return given


KNOWN = {
    "counted": (call(queries=TABLE), TABLE - 1),
    "counted by a mask": (call(queries=5, mask=12), 11),
    "counted after a cache": (call("dynamic", 7, 5), 11),
    "counted after a static cache": (call("static", 7, 5, device="cpu"), TABLE - 1),
    "given, to decode": (call("dynamic", 7, 1, positions=3), 7),
    "given, to decode a block": (call("dynamic", 7, 4, positions=[3, 4, 5, 6]), 10),
    "given, to decode into a static cache": (call("static", 7, 1, positions=3), TABLE - 1),
    "given": (call(None, 0, 1, positions=3), None),
    "given into an empty cache": (call("dynamic", 0, 1, positions=3), None),
    "given into an empty static cache": (call("static", 0, 4, positions=[0, 1, 2, 3]), None),
    "given in a block after a static cache": (call("static", 7, 4, positions=[7, 8, 9, 10]), None),
}


@pytest.mark.parametrize("case", KNOWN)
def test_what_the_host_knows(case):
    arguments, last = KNOWN[case]
    pos = resolve(arguments)
    assert bound(arguments, pos) == last
    assert hasattr(pos, COUNTED) == case.startswith("counted")


@pytest.mark.parametrize("case", [case for case, (_, last) in KNOWN.items() if last is not None])
def test_nothing_is_looked_at_where_the_host_knows(case, accelerator):
    assert settle(KNOWN[case][0]).shape[0] in (1, 2)


@pytest.mark.parametrize("arguments", [call(None, 0, 1, positions=3), call("dynamic", TABLE, 1, positions=3)])
def test_otherwise_there_is_one_look(arguments, accelerator):
    """A bound past the table is no reason to refuse a row that is padded on the left."""
    with pytest.raises(RuntimeError, match="meta"):
        settle(arguments)


def test_positions_past_the_table_are_refused(nothing_at_hand):
    for arguments in (
        call(queries=TABLE + 1, device="cpu"),
        call("dynamic", TABLE, device="cpu"),
        call("dynamic", TABLE, positions=TABLE, device="cpu"),
        call(positions=TABLE, device="cpu"),
    ):
        with pytest.raises(ValueError, match=f"position {TABLE} lies past the learned table"):
            settle(arguments)


@pytest.mark.parametrize(
    "arguments, looks",
    [
        (call(queries=5, positions=[0, 1, 2, 3, 4], device="cpu"), 1),
        (call(queries=1, positions=0, device="cpu"), 0),
        (call("dynamic", 7, positions=3, device="cpu"), 0),
        (call("dynamic", 7, 4, positions=[3, 4, 5, 6], device="cpu"), 0),
        (call(queries=5, device="cpu"), 0),
        (call(queries=5, mask=5, device="cpu"), 0),
    ],
)
def test_documents_are_looked_for_once_and_only_where_positions_are_given(arguments, looks):
    counted = arguments | {"position_ids": resolve(arguments)}
    with Calls() as calls:
        assert DocumentMasks([])(None, (), counted)[1] == counted
    assert calls.count(LOOKS) == looks
