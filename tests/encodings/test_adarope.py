import torch
from tiny import tiny_model

import hf_posenc
from hf_posenc.encodings import create
from hf_posenc.patching import patch_of


def test_each_group_of_heads_turns_at_its_own_pace(geometry, random_qk, rotary_scores):
    q, k, pos = random_qk(geometry, 10)
    adarope = create("adarope", geometry).double()
    a = torch.tensor([[0.1, -0.3, 2.0, 0.0], [0.0, 0.5, -1.0, 3.0]])
    adarope.log_scale.data.copy_(a)
    scores = adarope.scores(q, k, pos, pos)
    for head in range(4):
        turned = [10_000.0 ** (-n / 4) * 2.718281828459045**x for n, x in enumerate(a[head // 2].double().tolist())]
        expected = rotary_scores(q[:, [head]], k[:, [head // 2]], lambda i, j, turned=turned: [(i - j) * f for f in turned])
        torch.testing.assert_close(scores[:, [head]], expected, rtol=0, atol=1e-6)


def test_each_layer_has_its_own(batch):
    model = hf_posenc.patch(tiny_model("llama"), "adarope", layers="all")
    shapes = [(p.layers, p.native, tuple(p.encoding.log_scale.shape)) for p in patch_of(model).placements]
    assert shapes == [((0,), False, (2, 8)), ((1,), False, (2, 8))]


def test_frequencies_learn_apart(batch):
    model = hf_posenc.patch(tiny_model("llama"), "adarope", layers="all")
    model(batch["input_ids"], labels=batch["input_ids"]).loss.backward()
    for placement in patch_of(model).placements:
        first, second = placement.encoding.log_scale.grad
        assert first.abs().min() > 0 and not torch.allclose(first, second)
