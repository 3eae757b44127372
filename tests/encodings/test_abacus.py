import pytest
import torch
from texts import pieces, text_of
from tiny import tiny_model

import hf_posenc
from hf_posenc.encodings import create

DIGITS = list(range(10))
IDS = torch.tensor([[5, 1, 40, 7, 7, 7, 41, 42, 0], [40, 3, 41, 1, 2, 3, 4, 5, 6]])
PLACES = [[1, 2, 0, 1, 2, 3, 0, 0, 1], [0, 1, 0, 1, 2, 3, 4, 5, 6]]
"""What the authors' code makes of them."""


@pytest.fixture
def abacus(geometry):
    torch.manual_seed(0)
    made = create("abacus", geometry, digits=DIGITS, rows=200).eval()
    torch.nn.init.normal_(made.table)
    return made.requires_grad_(False)


@pytest.mark.parametrize("steps", [[9], [1] * 9, [4, 1, 2, 2]])
def test_counts_the_digits_of_a_number(abacus, steps):
    assert pieces(abacus, IDS, steps, lambda text: abacus.notes(text)[..., 0]).tolist() == PLACES
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    added = abacus.embed_text(x, text_of(abacus, IDS)) - x
    torch.testing.assert_close(added, abacus.table[torch.tensor(PLACES)].double())


def test_a_number_ends_with_its_text(abacus):
    first = torch.zeros(2, 9, dtype=torch.bool)
    first[:, [0, 4]] = True
    found = pieces(abacus, IDS, [2, 7], lambda text: abacus.notes(text)[..., 0], first=first)
    assert found.tolist() == [[1, 2, 0, 1, 1, 2, 0, 0, 1], [0, 1, 0, 1, 1, 2, 3, 4, 5]]


def test_digits_are_moved_together_while_training(abacus):
    x, places, seen = torch.zeros(2, 9, 32), torch.tensor(PLACES), set()
    for _ in range(200):
        added = abacus.train().embed_text(x, text_of(abacus, IDS))
        offset = (abacus.table == added[0, 0]).all(-1).nonzero().item() - 1
        assert torch.equal(added, abacus.table[torch.where(places > 0, places + offset, 0)])
        seen.add(offset)
    assert min(seen) < 10 and max(seen) > 90 and max(seen) <= 99


def test_digits_beyond_the_last_row_share_it(geometry):
    abacus = create("abacus", geometry, digits=DIGITS, rows=4).eval()
    torch.nn.init.normal_(abacus.table)
    added = abacus.embed_text(torch.zeros(2, 9, 32), text_of(abacus, IDS))
    assert torch.equal(added[1, 5:], abacus.table[3].expand(4, -1))


def test_without_digits():
    with pytest.raises(ValueError, match=r"abacus has to know the digits: .*digits=tokenizer"):
        hf_posenc.patch(tiny_model("llama"), "abacus")


@pytest.mark.parametrize("options", [{"digits": "0123"}, {"digits": [1.0]}, {"digits": [-1]}, {"rows": 1}, {"max_offset": -1}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("abacus", geometry, **options)
