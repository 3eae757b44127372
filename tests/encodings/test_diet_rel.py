import pytest
import torch
from tiny import started

from hf_posenc.encodings import create


def test_scores(geometry, random_qk):
    diet, (q, k, _) = create("diet_rel", geometry, max_distance=5), random_qk(geometry, 7)
    pos = torch.tensor([[0, 1, 2, 4, 9, 10, 500]]).expand(2, -1)
    scores, none = (encoding.scores(q, k, pos, pos) for encoding in (diet, create("nope", geometry)))
    for i in range(7):
        for j in range(7):
            distance = min(max(int(pos[0, i] - pos[0, j]), 0), 5)
            torch.testing.assert_close((scores - none)[:, :, i, j], diet.table[:, distance].double().expand(2, -1), rtol=0, atol=1e-12)


def test_is_t5_with_a_bucket_for_each_distance(geometry):
    diet, t5 = create("diet_rel", geometry, max_distance=15), create("t5", geometry)
    diet.table.data = t5.table.data[:16].T
    pos = torch.arange(16)[None]
    torch.testing.assert_close(diet.bias_matrix(pos, pos), t5.bias_matrix(pos, pos))


def test_reaches_to_the_native_context(geometry):
    assert create("diet_rel", geometry).table.shape == (4, 16)


@pytest.mark.parametrize("init, base", [("zero", "nope"), ("alibi", "alibi")])
def test_starts_as_another_within_its_reach(init, base):
    encoding, logits = started("diet_rel", init=init, max_distance=20)
    assert encoding.starts_as == ("nope" if init == "zero" else "")  # past its reach it is no ALiBi
    torch.testing.assert_close(logits, started(base)[1])


@pytest.mark.parametrize("options", [{"max_distance": 0}, {"init": "uniform"}])
def test_bad_options(geometry, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("diet_rel", geometry, **options)
