import dataclasses
import math

import pytest
import torch
from tiny import started, tiny_model

import hf_posenc
from hf_posenc.encodings import create


def reference(kernel, p, a, distance):
    p, a = max(p, 0.01), max(a, 0.01)
    return -p * math.log(1 + a * distance) if kernel == "log" else -p * distance ** min(a, 2.0)


@pytest.mark.parametrize("kernel", ["log", "power"])
def test_scores(geometry, random_qk, kernel):
    kerple = create("kerple", geometry, kernel=kernel)
    r1, r2 = [0.5, 1.7, -3.0, 0.9], [0.25, 5.0, 0.6, -1.0]
    kerple.r1.data, kerple.r2.data = torch.tensor(r1), torch.tensor(r2)
    q, k, pos = random_qk(geometry, 12)
    scores = kerple.scores(q, k, pos, pos)
    for h in range(4):
        for i in range(12):
            for j in range(i + 1):
                bias = reference(kernel, r1[h], r2[h], i - j)
                expected = (q[:, h, i] * k[:, h // 2, j]).sum(-1) / math.sqrt(8) + bias
                torch.testing.assert_close(scores[:, h, i, j], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", ["log", "power"])
def test_gradients_are_finite_and_reach_clamped_parameters(geometry, kernel):
    kerple = create("kerple", geometry, kernel=kernel)
    kerple.r1.data, kerple.r2.data = torch.tensor([0.5, -0.1, 1.0, 1.0]), torch.tensor([0.5, 1.0, 0.001, 3.0])
    pos = torch.arange(6)[None]
    kerple.bias_matrix(pos, pos).tril().sum().backward()
    for parameter in (kerple.r1, kerple.r2):
        assert parameter.grad.isfinite().all()
        assert (parameter.grad != 0).all()


@pytest.mark.parametrize("kernel", ["log", "power"])
def test_no_distance_no_bias(geometry, kernel):
    kerple = create("kerple", geometry, kernel=kernel)
    near = kerple.bias_matrix(torch.tensor([[5]]), torch.tensor([[5, 6, 9]]))
    assert torch.equal(near, torch.zeros(1, 4, 1, 3))


@pytest.mark.parametrize("kernel, most", [("log", (2, 1)), ("power", (1, 2))])
def test_starts_as_the_authors_do(geometry, kernel, most):
    kerple = create("kerple", dataclasses.replace(geometry, num_heads=1000, num_kv_heads=1), kernel=kernel)
    for r, top in zip((kerple.r1, kerple.r2), most, strict=True):
        assert r.min() >= 0 and 0.95 * top < r.max() <= top and r.mean().item() == pytest.approx(top / 2, abs=0.05 * top)


def test_power_from_alibi_is_alibi():
    """With slopes below the authors' bound too, which a step may reach again."""
    encoding, logits = started("kerple", kernel="power", init="alibi")
    assert encoding.starts_as == "alibi" and encoding.r1.min() == 2**-8
    torch.testing.assert_close(logits, started("alibi")[1])
    encoding.project()
    assert encoding.r1.min() == 2**-8
    encoding.r1.data.zero_()
    encoding.project()
    assert (encoding.r1 == 2**-8).all()


def test_power_from_alibi_has_the_slopes_of_the_model(geometry):
    own = dataclasses.replace(geometry, slopes=(0.5, 0.25, 0.125, 0.001))
    kerple, pos = create("kerple", own, kernel="power", init="alibi"), torch.arange(30)[None].double()
    expected = create("alibi", own).bias_matrix(pos, pos).tril()
    torch.testing.assert_close(kerple.bias_matrix(pos, pos), expected)


def test_log_from_alibi_touches_it(geometry):
    log, pos = create("kerple", geometry, init="alibi"), torch.arange(5).double()[None]
    bias, expected = (x.bias_matrix(pos[:, -1:], pos)[0, :, 0] for x in (log, create("alibi", geometry)))
    assert log.starts_as == ""
    torch.testing.assert_close(bias, expected, rtol=0.02, atol=0)
    assert (bias[:, :-1] > expected[:, :-1]).all()


def test_log_of_a_power(geometry):
    """The variant of three parameters (section 5.3): the log kernel where the third is 1."""
    log, log3, pos = create("kerple", geometry), create("kerple", geometry, kernel="log3"), torch.arange(12)[None].double()
    log3.r1.data, log3.r2.data = log.r1.data, log.r2.data
    torch.testing.assert_close(log3.bias_matrix(pos, pos), log.bias_matrix(pos, pos))
    log3.r3.data = torch.tensor([0.5, 1.5, 3.0, -1.0])
    bias = log3.bias_matrix(pos, pos)
    for h, r3 in enumerate((0.5, 1.5, 2.0, 0.01)):
        r1, r2 = (max(x[h].item(), 0.01) for x in (log3.r1, log3.r2))
        for t in range(12):
            expected = -r1 * math.log(1 + r2 * t**r3) if t else 0.0
            assert bias[0, h, 11, 11 - t].item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    bias.tril().sum().backward()
    assert all(p.grad.isfinite().all() and (p.grad != 0).all() for p in log3.parameters())
    log3.project()
    assert log3.r3.tolist() == pytest.approx([0.5, 1.5, 2.0, 0.01])


def follow(values, gradients, rate, low, high):
    """The authors' rule, a number at a time: into the bounds before each forward pass, then a step."""
    for gradient in gradients:
        values = [min(max(r, low), high) - rate * gradient for r in values]
    return [min(max(r, low), high) for r in values]


@pytest.mark.parametrize("how", ["plain", "checkpointed", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kernel", ["log", "power"])
def test_a_bound_is_left_as_soon_as_the_gradient_turns(kernel, how):
    model = hf_posenc.patch(tiny_model("llama"), "kerple", kernel=kernel).train()
    kerple, ids = model.model.positional_encoding, torch.arange(1, 9)[None]
    if how == "checkpointed":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    run = torch.compile(model, backend="eager", fullgraph=True) if how == "compiled" else model
    kerple.r1.data, kerple.r2.data = torch.tensor([0.1, 0.3, 0.5, 1.2]), torch.tensor([0.1, 0.3, 0.9, 1.9])
    start, gradients = [kerple.r1.tolist(), kerple.r2.tolist()], [1.0] * 20 + [-1.0] * 30
    optimizer = torch.optim.SGD([kerple.r1, kerple.r2], lr=0.03)
    for gradient in gradients:
        run(ids, labels=ids, use_cache=False).loss.backward()
        for r in (kerple.r1, kerple.r2):
            assert r.grad.isfinite().all()
            r.grad = torch.full_like(r, gradient)
        optimizer.step()
        optimizer.zero_grad()
    high = (math.inf, 2.0 if kernel == "power" else math.inf)
    expected = [follow(r, gradients, 0.03, 0.01, top) for r, top in zip(start, high, strict=True)]
    model.eval()
    with torch.no_grad():
        before = model(ids).logits
        kerple.project()
        assert torch.equal(model(ids).logits, before)
    torch.testing.assert_close([kerple.r1.tolist(), kerple.r2.tolist()], expected, rtol=0, atol=1e-5)


def test_without_gradients_nothing_is_written():
    model = hf_posenc.patch(tiny_model("llama"), "kerple")
    kerple = model.model.positional_encoding
    kerple.r1.data.fill_(-1.0)
    with torch.no_grad():
        model(torch.arange(1, 9)[None])
    assert (kerple.r1 == -1).all()


def test_bad_kernel(geometry):
    with pytest.raises(ValueError, match="kernel is one of log, power, log3, got 'cosine'"):
        create("kerple", geometry, kernel="cosine")
    with pytest.raises(ValueError, match="init is one of uniform, alibi, got 'zero'"):
        create("kerple", geometry, init="zero")
