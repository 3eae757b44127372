import torch

from hf_posenc.encodings.input.runs import since


def test_counts_from_the_last_that_is_first():
    first = torch.tensor([[True, False, False, True, False], [False, False, True, True, False]])
    assert since(first, torch.tensor([-9, -1])).tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 1]]
    assert since(first, torch.tensor([9, 4])).tolist() == [[0, 1, 2, 0, 1], [5, 6, 0, 0, 1]]
