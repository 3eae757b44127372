import math

import torch

from hf_posenc.encodings import create


def test_scores(geometry, random_qk):
    pope, (q, k, pos) = create("pope", geometry).double(), random_qk(geometry, 9)
    torch.manual_seed(0)
    pope.phase.data.uniform_(-2 * math.pi, 0)
    scores = pope.scores(q, k, pos + 50, pos + 50).detach()
    magnitude = [[math.log1p(math.exp(x)) for x in row] for row in (q[1, 3, 7].tolist(), k[1, 1, 2].tolist())]
    phases = [5 * 10_000 ** (-n / 8) - pope.phase[1, n].item() for n in range(8)]
    expected = sum(a * b * math.cos(phase) for a, b, phase in zip(*magnitude, phases, strict=True)) / math.sqrt(8)
    assert math.isclose(scores[1, 3, 7, 2].item(), expected, rel_tol=1e-6)


def test_phases_stay_within_a_turn(geometry):
    pope = create("pope", geometry)
    pope.phase.data[0, :2] = torch.tensor([1.0, -9.0])
    pope.project()
    assert pope.phase[0, :2].tolist() == [0.0, -torch.tensor(2 * math.pi).item()]


def test_keys_are_cached_twice_as_wide(geometry, random_qk):
    pope, (_, k, pos) = create("pope", geometry), random_qk(geometry, 9)
    assert pope.cached_key(k, pos).shape == (2, 2, 9, 16)
