"""What is shown of an encoding, as numbers; the pictures and the page only draw them.

A score is looked at without the product of the contents, which are pseudo-random, the same every time. Where position alone is at work, or
what a layer is given beside queries and keys, a key has the content of the query: vectors of signs and their negatives, a mean over which
is exact for biases, for whatever turns pairs of dimensions, and for vectors that are added. Where queries and keys themselves are looked
at, keys have contents of their own, queries are those of an orthogonal basis, which makes mean squares exact where a score is linear in the
query, and all four signs of queries and keys are taken. Where weights do not come from a softmax, their logarithm stands for the score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from ..encodings.base import PositionalEncoding, Text, products
from ..encodings.rotary.by_length import RoPEByLength
from ..encodings.rotary.rope import BY_LENGTH, native_frequencies
from .subject import Subject

NEAR = 128
"""Distances that are looked at one by one."""
SIDE = 64
"""Positions whose similarity is looked at, and those at which a token is embedded."""
POINTS = 384
"""Distances of a whole context that are looked at."""
CONTIGUOUS = 4096
"""Keys that there are at most where all of them must be."""
AT_ONCE = 1 << 23
"""Numbers in memory at once."""
DECIMALS = 12
"""Of scores: what is left beyond is rounding."""
CONTENTS = 16
"""Of queries, where fewer than the width of a head will do."""
TEXTS = 2
"""That keys take their contents from."""


@dataclass(frozen=True)
class Row:
    """What the positions add to the scores of one query.

    Attributes:
        query: its position. distances: [n] to its keys, ascending.
        mean: [H,n], NaN where the query does not see the key; one row for encodings of the embeddings, which know no heads.
        spread: [H,n], root of the mean square over the contents, where these matter.
    """

    query: int
    distances: Tensor
    mean: Tensor
    spread: Tensor | None = None

    @property
    def empty(self) -> bool:
        """Positions add nothing."""
        return not self.mean.nan_to_num().any() and (self.spread is None or not self.spread.nan_to_num().any())

    @property
    def alike(self) -> bool:
        """All heads have the same numbers."""
        return torch.allclose(self.mean[:1].nan_to_num().expand_as(self.mean), self.mean.nan_to_num(), atol=1e-9)

    def upto(self, distance: int) -> Row:
        """The part nearer than that."""
        here = self.distances < distance
        return Row(self.query, self.distances[here], self.mean[:, here], None if self.spread is None else self.spread[:, here])


@dataclass(frozen=True)
class Similarity:
    """How alike positions are: `values` [n,n] of rows and columns at `positions` [n]; NaN for keys that a query does not see."""

    positions: Tensor
    values: Tensor
    what: str


@dataclass(frozen=True)
class Embedded:
    """What the embedding `token` [M] of one token becomes at positions 0 .. n - 1: [n,M]."""

    token: Tensor
    becomes: Tensor

    @property
    def added(self) -> Tensor:
        """What position changed, [n,M]."""
        return self.becomes - self.token


@dataclass(frozen=True)
class View:
    """All that is shown of one encoding; each part is computed when it is asked for."""

    subject: Subject

    @cached_property
    def within(self) -> Row:
        """The last query of a text as long as the model was trained for."""
        return row(self.subject, min(self.subject.trained, self.subject.reach) - 1)

    @cached_property
    def past(self) -> Row | None:
        """The last query of a text longer than that; None where the encoding is not defined there."""
        return row(self.subject, self.subject.reach - 1) if self.subject.reach > self.subject.trained else None

    @cached_property
    def refused(self) -> str:
        """What it says of the first position that it is not defined at."""
        try:
            self.subject.encoding.check_positions(self.subject.reach)
        except ValueError as error:
            return str(error)
        return ""

    @cached_property
    def similarity(self) -> Similarity:
        return similarity(self.subject)

    @cached_property
    def wavelengths(self) -> dict[str, Tensor]:
        """In tokens, pair by pair; those of the model first where it has others. Infinite for a pair that does not turn."""
        return {name: 2 * math.pi / frequencies.double().abs() for name, frequencies in frequencies_of(self.subject).items()}

    @cached_property
    def embedded(self) -> Embedded | None:
        """Numbers of a token; None for encodings that leave the embeddings alone."""
        if not self.subject.embeds:
            return None
        token = self.subject.ids[:1]
        return Embedded(self.subject.embedded(token)[0], embed(self.subject, token, torch.arange(min(SIDE, self.subject.reach)))[0])


# -- scores -----------------------------------------------------------------------------------------------------------


def row(subject: Subject, query: int) -> Row:
    """What positions add to the scores of the query at that position."""
    query = min(query, CONTIGUOUS - 1) if subject.reads_text else query
    distances, at = sampled(query), torch.tensor([query])
    keys, every = query - distances, torch.arange(query + 1)
    spread = None
    if not subject.attends:
        mean = of_embeddings(subject, at, keys)
    elif subject.reads_contents:
        mean, spread = (found[:, 0, keys] for found in with_contents(subject, at, every))
    elif subject.reads_text:
        mean = equal_contents(subject, at, every)[:, 0, keys]
    else:
        mean = equal_contents(subject, at, keys)[:, 0]
    return Row(query, distances, mean.round(decimals=DECIMALS), spread)


def sampled(query: int) -> Tensor:
    """Distances to keys, ascending: the near ones, the powers of two, and some in between and beyond."""
    powers = 2 ** torch.arange(query.bit_length())
    return torch.cat((torch.arange(min(NEAR, query + 1)), powers[powers <= query], torch.linspace(0, query, POINTS).long())).unique()


def signs(count: int, width: int) -> Tensor:
    """Contents [N,D] of numbers that are 1 or -1, the second half the negatives of the first."""
    drawn = 1 - 2 * torch.randint(2, (count // 2, width), generator=torch.Generator().manual_seed(0)).double()
    return torch.cat((drawn, -drawn))


def basis(width: int) -> Tensor:
    """Contents [D,D] at right angles to each other, with numbers of mean square 1."""
    q, r = torch.linalg.qr(drawn(width, width))
    return q.T * r.diagonal().sign()[:, None] * width**0.5


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Numbers of a normal distribution."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def equal_contents(subject: Subject, q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """What positions add to scores [H,Q,K] of queries at `q_pos` [Q] for keys at `k_pos` [K] with the same content."""
    encoding, g = subject.encoding, subject.encoding.geometry
    if isinstance(encoding, RoPEByLength) and len(q_pos) > 1:  # each may have frequencies of its own, and all would be tried on all
        return torch.cat([equal_contents(subject, each, k_pos) for each in q_pos.split(1)], 1)
    count, texts = (CONTENTS // 4, TEXTS) if encoding.has("state") else (CONTENTS, 1)
    contents, total = signs(count, g.head_dim)[:, None, None], torch.zeros((), dtype=torch.float64)
    for some in contents.split(at_once(g.num_heads * len(q_pos) * len(k_pos), g.num_kv_heads * len(k_pos) * g.head_dim)):
        q, k = some.expand(-1, g.num_heads, len(q_pos), -1), some.expand(-1, g.num_kv_heads, len(k_pos), -1)
        for text in range(texts):
            total = total + added(encoding, q, k, q_pos, k_pos, text).sum(0)
    return seen(total / (len(contents) * texts))


def with_contents(subject: Subject, q_pos: Tensor, k_pos: Tensor, few: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and root mean square [H,Q,K] of what positions add to scores, over contents, of which `few` make a rough number.

    Keys are those of all tokens, in order.
    """
    g, total, square, count = subject.encoding.geometry, torch.zeros(()).double(), torch.zeros(()).double(), 0
    few = few or subject.encoding.has("state")
    for text in range(1 if few else TEXTS):
        keys = drawn(1, g.num_kv_heads, len(k_pos), g.head_dim, seed=1 + text)
        for some in basis(g.head_dim)[: CONTENTS if few else None].split(at_once(g.num_heads * len(q_pos) * len(k_pos))):
            for q, k in product((some, -some), (keys, -keys)):
                found = added_to_each(subject.encoding, q, k, q_pos, k_pos, text)
                total, square, count = total + found.sum(2), square + found.square().sum(2), count + len(some)
    return seen(total / count), seen((square / count).sqrt())


def added_to_each(encoding: PositionalEncoding, contents: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, text: int) -> Tensor:
    """What positions add to the scores [H,Q,N,K] of queries with each of `contents` [N,D], for keys [1,G,K,D]."""
    heads, count = encoding.geometry.num_heads, len(contents)
    if encoding.has("state"):  # queries are the last keys, each once: a row for each content
        q = contents[:, None, None].expand(-1, heads, len(q_pos), -1)
        return added(encoding, q, k.expand(count, -1, -1, -1), q_pos, k_pos, text).permute(1, 2, 0, 3)
    q = contents.repeat(len(q_pos), 1).expand(1, heads, -1, -1)
    return added(encoding, q, k, q_pos.repeat_interleave(count), k_pos).view(heads, len(q_pos), count, len(k_pos))


def at_once(*sizes: int) -> int:
    """How many tensors of the largest of these sizes may be in memory."""
    return max(1, AT_ONCE // max(sizes))


def added(encoding: PositionalEncoding, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, text: int = 0) -> Tensor:
    """Scores [B,H,Q,K] less the products of queries [B,H,Q,D] at `q_pos` [Q] and keys [B,G,K,D] at `k_pos` [K].

    Args:
        text: which one layers are given, where these see it; the queries are then those of the last keys.
    """
    batch, state = len(q), None
    sees = (k_pos <= q_pos[:, None])[None, None]
    if encoding.has("state"):
        x = drawn(1, len(k_pos), encoding.geometry.hidden_size, seed=101 + text)
        state = encoding.state(x, k_pos[None]).double().expand(batch, -1, -1, -1)
    shape = (batch, -1) if encoding.axes == 1 else (encoding.axes, batch, -1)
    q_pos, k_pos = q_pos.expand(shape), k_pos.expand(shape)
    scores = encoding.scores(q, k, q_pos, k_pos, state=state, seen=sees)
    if encoding.has("normalise"):
        weights = encoding.normalise(scores, encoding.block(q, k, q_pos, k_pos, state=state, seen=sees))
        scores = weights.masked_fill(~sees, 0).log()
    return scores - products(q, k) * q.shape[-1] ** -0.5


def seen(scores: Tensor) -> Tensor:
    """NaN where a score is infinite: the key is hidden."""
    return scores.masked_fill(scores.isinf(), math.nan)


# -- embeddings -------------------------------------------------------------------------------------------------------


def embed(subject: Subject, ids: Tensor, pos: Tensor) -> Tensor:
    """What tokens `ids` [N] become at each of the positions `pos` [T] of a text that is this token throughout: [N,T,M]."""
    encoding = subject.encoding
    if not encoding.has("embed_text"):
        places = pos.expand(len(ids), -1)
        return encoding.infuse(encoding.embed(subject.embedded(ids)[:, None].expand(-1, len(pos), -1), places), places)
    every = torch.arange(int(pos.max()) + 1)[None]
    rows = []
    for token in ids:
        text = Text(token.expand_as(every), every, every == 0, torch.zeros(1, encoding.noted, dtype=torch.long), subject.embedded)
        x = encoding.embed(subject.embedded(text.ids), every)
        rows.append(encoding.embed_text(x, text)[0, pos])
    return torch.stack(rows)


def of_embeddings(subject: Subject, q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """Products [Q,K] of what a token becomes at these positions, over sqrt(M), as if nothing projected it; less that of the token itself.

    Less also what the token itself has to do with what is added to it, which is chance.
    """
    tokens = subject.embedded(subject.ids)[:, None]
    q, k = (embed(subject, subject.ids, pos) for pos in (q_pos, k_pos))
    chance = tokens @ (k - tokens).mT + (q - tokens) @ tokens.mT if adds(subject) else 0
    return ((q @ k.mT - tokens @ tokens.mT - chance) / tokens.shape[-1] ** 0.5).mean(0)


def adds(subject: Subject) -> bool:
    """Whether the same is added to every token."""
    pos = torch.arange(min(2, subject.reach))
    change = embed(subject, subject.ids, pos) - subject.embedded(subject.ids)[:, None]
    return torch.allclose(change, change[:1].expand_as(change), atol=1e-9)


# -- positions --------------------------------------------------------------------------------------------------------


def similarity(subject: Subject) -> Similarity:
    """How alike the first positions are; where the encoding goes by region, those of the whole context."""
    step = -(-subject.reach // SIDE) if subject.encoding.has("regions") and not subject.reads_text else 1
    pos = torch.arange(0, subject.reach, step)[:SIDE]
    after = pos[None, :] > pos[:, None]
    if subject.embeds:
        change = embed(subject, subject.ids, pos) - subject.embedded(subject.ids)[:, None]
        change = torch.nn.functional.normalize(change, dim=-1)
        return Similarity(pos, (change @ change.mT).mean(0), "cosine of what is added to tokens")
    if subject.reads_contents:
        _, spread = with_contents(subject, pos, pos, few=True)
        return Similarity(pos, spread.mean(0).masked_fill(after, math.nan), "root mean square of what positions add to the score")
    mean = equal_contents(subject, pos, pos).mean(0)
    return Similarity(pos, mean.masked_fill(after, math.nan), "what positions add to the score, mean of heads")


def frequencies_of(subject: Subject) -> dict[str, Tensor]:
    """Radians per token [n] of each set of pairs that the encoding has, by name; none where it has no waves."""
    encoding = subject.encoding
    native = {}
    if encoding.rotary and encoding.geometry.rope_type not in BY_LENGTH:
        native = {"the model's own": native_frequencies(encoding.geometry)}
    own = encoding.frequencies()
    if isinstance(encoding, RoPEByLength) and own is None:
        ends = sorted({min(subject.trained, subject.reach), subject.reach})
        served = {f"text of {end:,}": encoding.frequencies_for(torch.tensor([end - 1]))[0] for end in ends}
        if all(len(found) == len(encoding.inv_freq) for found in served.values()):  # some tell lengths apart by something else
            return native | served
    sets = [own[0]] if own is not None else [buffer for name, buffer in encoding.named_buffers() if name.split(".")[-1] == "inv_freq"]
    rows = [each for found in sets for each in found.detach().reshape(-1, found.shape[-1])]
    if not rows:
        return {}
    if len(rows) == 1 and native and torch.equal(rows[0].float(), native["the model's own"].float()):
        return native
    return native | {encoding.name if len(rows) == 1 else f"{encoding.name}, {index}": each for index, each in enumerate(rows)}
