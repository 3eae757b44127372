import pytest
import torch
from texts import pieces, text_of
from torch.nn import functional as F

from hf_posenc.encodings import create


@pytest.fixture
def conv(geometry):
    torch.manual_seed(0)
    made = create("conv", geometry, taps=3)
    torch.nn.init.normal_(made.w)
    return made


@pytest.fixture
def table():
    return torch.randn(50, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def ids():
    return torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(1))


def convolved(conv, x):
    """By torch, with zeros on the left."""
    kernel = conv.w.double().T.flip(-1)[:, None]
    return x + F.conv1d(F.pad(x.transpose(1, 2), (2, 0)), kernel, groups=32).transpose(1, 2)


def test_is_a_depthwise_convolution(conv, table, ids):
    x = F.embedding(ids, table)
    torch.testing.assert_close(conv.embed_text(x, text_of(conv, ids, table)), convolved(conv, x))


def test_texts_do_not_see_each_other(conv, table, ids):
    x, first = F.embedding(ids, table), torch.zeros(2, 9, dtype=torch.bool)
    first[:, [0, 4]] = True
    packed = conv.embed_text(x, text_of(conv, ids, table, first))
    torch.testing.assert_close(packed, torch.cat([convolved(conv, part) for part in x.split([4, 5], 1)], 1))


@pytest.mark.parametrize("steps", [[9], [1] * 9, [4, 1, 2, 2]])
def test_a_text_may_come_in_pieces(conv, table, ids, steps):
    found = pieces(conv, ids, steps, lambda text: conv.embed_text(text.embedded(text.ids), text), table)
    torch.testing.assert_close(found, convolved(conv, F.embedding(ids, table)))


@pytest.mark.parametrize("taps", [1, 0, 2.0, 65])
def test_bad_taps(geometry, taps):
    with pytest.raises(ValueError, match="taps"):
        create("conv", geometry, taps=taps)
