import torch
from tiny import started
from transformers.models.inkling.modeling_inkling import InklingRelativeLogits

from hf_posenc.encodings import create


def test_is_that_of_transformers(geometry, random_qk):
    torch.manual_seed(0)
    encoding, (q, k, pos) = create("inkling", geometry, curves=3, extent=5).double(), random_qk(geometry, 12)
    for weight in encoding.parameters():
        weight.data.normal_()
    x = torch.randn(2, 12, 32, dtype=torch.float64)
    stock = InklingRelativeLogits(3, 5).double()
    stock.proj.data = encoding.curves.data
    expected = stock((x @ encoding.mixing.T).unflatten(-1, (4, 3)), pos[0], pos[0])
    scores = encoding.scores(q, k, pos, pos, state=encoding.state(x, pos))
    bias = scores - create("nope", geometry).scores(q, k, pos, pos)
    torch.testing.assert_close(bias.tril(), expected.tril())


def test_starts_without_positions():
    encoding, logits = started("inkling")
    assert encoding.starts_as == "nope"
    torch.testing.assert_close(logits, started("nope")[1])
