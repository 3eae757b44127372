"""Every encoding on a simulated CUDA device: the numbers of the CPU, and nothing that a GPU would refuse, wait for or run out of."""

import copy
import json

import pytest
import reference_flex
import simulated as simulation
import torch
from simulated import FlexCall, host, simulated
from tiny import options_for, stays, tiny_model
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.testing import assert_close
from transformers import DynamicCache, StaticCache

import hf_posenc
from hf_posenc import cli
from hf_posenc.attention import flex as own_flex
from hf_posenc.attention import sparse
from hf_posenc.encodings import ENCODINGS

WAITS = {"plain": 0, "padded": 0, "backward": 0, "packed": 3, "given": 3, "chunks": 0, "dynamic": 0, "static": 0}
"""How often a pass may wait for the device, however many layers it has: positions that the caller gives are looked at,
for each kind of layer."""
BY_DATA = 2
"""How often an encoding that is `data_dependent` may wait beside, and copy, in each layer and pass; never in decoding."""
LENGTH, NATIVE, WINDOW = 300, 100, 140  # tokens: three blocks of 128, the last not whole
CLOSE = {"atol": 2e-4, "rtol": 2e-4}
STEPS = 2
FAMILIES = {"gpt2": "sdpa", "gemma2": "flex_attention", "gemma3_text": "sdpa", "gpt_oss": "flex_attention"}
"""Tables of positions, softcaps, and layers with and without a window, some with sinks; by the backend that each is loaded with."""
pytestmark = pytest.mark.skipif(not simulation.available(), reason="needs g++, and a PyTorch without CUDA")


@pytest.fixture
def device():
    with simulated() as device:
        yield device


def tokens(length=LENGTH, rows=2):
    return torch.randint(3, 60, (rows, length), generator=torch.Generator().manual_seed(2))


def left_padded():
    """[B,L]: the first row begins within the second block."""
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, :135] = 0
    return mask


def restarting():
    return torch.cat((torch.arange(170), torch.arange(LENGTH - 170)))[None].expand(2, -1)


LAYOUTS = {
    "plain": dict,
    "padded": lambda: {"attention_mask": left_padded()},
    "packed": lambda: {"position_ids": restarting(), "use_cache": False},
    "given": lambda: {"attention_mask": left_padded(), "position_ids": (left_padded().cumsum(-1) - 1).clamp(min=0)},
    "backward": dict,
}


def patched(arch, name, backend="sdpa", native=NATIVE, reach=2 * LENGTH, **changes):
    """A model of two layers whose windows and encodings have edges within `LENGTH`; None for a name leaves it stock."""
    window = {"sliding_window": WINDOW} if arch not in ("llama", "gpt2") else {}
    if name is not None and "step" in hf_posenc.describe(name).options:  # every further token is a region
        native = max(native, LENGTH - 12)
    if stays(name, arch):
        native = reach
    model = tiny_model(arch, attn_implementation=backend, max_position_embeddings=native, **window, **changes)
    if name is None:
        return model
    torch.manual_seed(7)
    options = options_for(name)
    if "max_positions" in options:
        options["max_positions"] = reach
    return hf_posenc.patch(model, name, layers="all", **options)


def moved(inputs, to="cuda:0"):
    return {key: x.to(to) if isinstance(x, torch.Tensor) else x for key, x in inputs.items()}


def twin_of(model):
    """The same model for a CPU, where flex attention has neither a backward pass nor sinks."""
    twin = copy.deepcopy(model)
    if (model.config._attn_implementation or "").endswith("flex_attention"):
        twin.set_attn_implementation("eager")
    return twin


def faultless(device, allowed, name, passes=1, decoding=False):
    """Nothing is refused or copied, and no more is waited for than `allowed` a pass and what the encoding says."""
    cls = ENCODINGS[name]
    by_data = 2 * BY_DATA * (cls.data_dependent and not decoding)
    by_length = 2 * (cls.has("regions") and cls.caches == "raw" and not decoding)  # which regions there are, for either kind of layer
    assert not device.mixes
    assert not device.refused
    assert device.waits.total() <= passes * (allowed + max(by_length, by_data)), device.waits
    assert device.copies.total() <= passes * max(by_length, by_data), device.copies


# -- the simulation itself --------------------------------------------------------------------------------------------


def test_a_stock_model_gives_the_numbers_of_the_cpu_to_the_last_bit(device):
    model, ids = patched("llama", None), tokens()
    wanted = copy.deepcopy(model)(ids)
    model.to("cuda:0")
    ids = ids.to("cuda:0")
    device.clear()
    out = model(ids)
    assert out.logits.device == torch.device("cuda:0")
    assert torch.equal(host(out.logits), wanted.logits)
    assert device.sdpa == ["causal"] * 2
    assert not (device.waits | device.copies | device.mixes | device.refused | device.stock_waits)


def test_the_backward_pass_gives_the_gradients_of_the_cpu(device):
    model = patched("llama", None, tie_word_embeddings=True)
    twin = copy.deepcopy(model)
    twin(tokens(20)).logits.square().sum().backward()
    model.to("cuda:0")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model(tokens(20).to("cuda:0")).logits.square().sum().backward()
    assert device.by_op["sdpa"] == device.by_op["sdpa backward"] == 2
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert one.grad.device.type == "cuda"
        assert_close(host(one.grad), other.grad, atol=1e-4, rtol=1e-4)


PROGRAMS = {
    "waits": {
        "item": lambda x, i: x[0].item(),
        "tolist": lambda x, i: x.tolist(),
        "truth": lambda x, i: bool((x > 0).any()),
        "integer": lambda x, i: range(int(i[1])),
        "slice": lambda x, i: x[: i[1]],
        "nonzero": lambda x, i: x.nonzero(),
        "boolean index": lambda x, i: x[x > 0],
        "where of one": lambda x, i: torch.where(x > 0),
        "masked_select": lambda x, i: x.masked_select(x > 0),
        "unique": lambda x, i: x.unique(),
        "unique_consecutive": lambda x, i: x.unique_consecutive(),
        "repeat_interleave": lambda x, i: x.repeat_interleave(i),
        "equal": lambda x, i: torch.equal(x, x + 1),
        "allclose": lambda x, i: torch.allclose(x, x + 1),
        "to the host": lambda x, i: x.cpu(),
        "into the host": lambda x, i: torch.zeros(4).copy_(x),
        "bincount": lambda x, i: i.bincount(),
        "writing by a mask": lambda x, i: x.index_put_((x > 0,), x.new_ones(1)),
    },
    "copies": {
        "from the host": lambda x, i: torch.arange(4).to(x.device),
        "tensor": lambda x, i: torch.tensor([1, 2], device=x.device),
        "tensor of one": lambda x, i: torch.tensor(1.0, device=x.device),
        "index of the host": lambda x, i: x[torch.tensor([1, 2])],
        "list for an index": lambda x, i: x[[1, 2]],
        "into the device": lambda x, i: x.copy_(torch.ones(4)),
    },
    "mixes": {
        "sum": lambda x, i: x + torch.arange(4),
        "where": lambda x, i: torch.where(torch.ones(4, dtype=torch.bool), x, 0.0),
        "masked_fill": lambda x, i: x.masked_fill(torch.ones(4, dtype=torch.bool), 0.0),
        "gather": lambda x, i: x.gather(0, torch.arange(4)),
        "index of the device": lambda x, i: torch.ones(4)[i],
        "product": lambda x, i: x[None] @ torch.ones(4, 1),
        "cat": lambda x, i: torch.cat((x, torch.ones(1))),
        "stack of numbers": lambda x, i: torch.stack((x[0], torch.ones(()))),
        "in place": lambda x, i: torch.ones(()).add_(x[0]),
    },
    "nothing": {
        "number": lambda x, i: x * 2 + torch.tensor(1.0),
        "where with numbers": lambda x, i: torch.where(x > 0, x, torch.tensor(0.0)),
        "made there": lambda x, i: torch.arange(4, device=x.device) + torch.zeros_like(x) + x.new_ones(4),
        "device without a number": lambda x, i: torch.full((4,), 2.0, device="cuda") * x,
        "gathered": lambda x, i: x[i] + x.gather(0, i),
        "masked": lambda x, i: x.masked_fill(x > 0, 0.0),
        "assigned by a mask": lambda x, i: x.__setitem__(x > 0, 0.0),
        "assigned": lambda x, i: x.__setitem__(slice(1, 3), 0.0),
        "shapes": lambda x, i: (len(x), x.shape, x.dtype, x.is_cuda, x.device),
    },
}


@pytest.mark.parametrize(("kind", "program"), [(kind, name) for kind, programs in PROGRAMS.items() for name in programs])
def test_what_a_gpu_feels_is_seen_with_its_line(device, kind, program):
    x, i = torch.tensor([-1.0, 2.0, 3.0, -4.0]).to("cuda:0"), torch.tensor([0, 1, 1, 3]).to("cuda:0")
    device.clear()
    PROGRAMS[kind][program](x, i)
    counters = {name: getattr(device, name) for name in ("waits", "copies", "mixes", "refused")}
    assert {name for name, found in counters.items() if found} == ({kind} - {"nothing"})
    for line in counters.get(kind, ()):
        assert line.startswith("test_simulated.py:")
        assert "lambda x, i" in line


def test_launches_and_the_largest_tensor(device):
    x = torch.ones(8, 16).to("cuda:0")
    device.clear()
    y = x.T[None, 2:].expand(3, -1, -1).unflatten(-1, (2, 4))
    assert device.launches == 0
    y.exp().add_(1)
    assert device.by_op == {"exp": 1, "add_": 1}
    assert device.largest.bytes == 4 * y.numel()
    assert "exp" in device.largest.where
    assert "test_simulated.py" in device.largest.where
    x[:, :0] * 2
    assert device.launches == 2


@torch.inference_mode()
def test_inference_mode(device):
    x = torch.ones(4).to("cuda:0")
    device.clear()
    assert bool(torch.allclose(F.linear(x, torch.ones(2, 4).to("cuda:0")).reshape(-1), x[:2] * 4))
    assert device.waits


@pytest.mark.parametrize("grad", [False, True])
def test_calls_of_sdpa(device, grad):
    q, k, v = (torch.randn(2, 4, 5, 8, requires_grad=grad) for _ in range(3))
    mask = torch.zeros(5, 5).masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    there = [x.detach().to("cuda:0").requires_grad_(grad) for x in (q, k, v)]
    found = F.scaled_dot_product_attention(*there, attn_mask=mask.to("cuda:0"))
    F.scaled_dot_product_attention(*there, is_causal=True)
    F.scaled_dot_product_attention(*there)
    F.scaled_dot_product_attention(*there, attn_mask=mask.to("cuda:0") == 0)
    assert device.sdpa == ["mask float32", "causal", "full", "mask bool"]
    assert device.by_op["sdpa"] == 4
    assert torch.equal(host(found), wanted.detach())
    assert not (device.mixes | device.refused)
    F.scaled_dot_product_attention(*there, attn_mask=mask)
    assert device.mixes
    F.scaled_dot_product_attention(*(x.bfloat16() for x in there), attn_mask=mask.to("cuda:0").bfloat16())
    assert not device.refused
    F.scaled_dot_product_attention(*(x.bfloat16() for x in there), attn_mask=mask.to("cuda:0"))
    assert "float32 for a query of torch.bfloat16" in next(iter(device.refused))
    if grad:
        found.square().sum().backward()
        wanted.square().sum().backward()
        for one, other in zip(there, (q, k, v), strict=True):
            assert torch.equal(host(one.grad), other.grad)


def flexed(device, score_mod, length=130, mask=None, grad=False):
    q, k, v = (torch.randn(2, heads, length, 8).to(device).requires_grad_(grad) for heads in (4, 2, 2))
    return own_flex.kernel(None, q, k, v, score_mod=score_mod, block_mask=mask, scaling=0.3, lse=True), (q, k, v)


def test_flex_attention_is_one_launch_and_what_it_captures_is_seen(device):
    table, on_the_host = torch.randn(4, 130).to("cuda:0").requires_grad_(), torch.zeros(130)
    device.clear()
    (output, lse), inputs = flexed("cuda:0", lambda s, b, h, q, k: s + table[h, (q - k).abs()], grad=True)
    assert device.by_op["flex_attention"] == 1
    assert "exp" not in device.by_op
    assert device.flex == [FlexCall((2, 4, 130, 130), True, False, 1.0)]
    assert not device.mixes
    (output.sum() + lse.sum()).backward()
    assert device.by_op["flex_attention backward"] == 1
    assert all(x.grad is not None for x in (*inputs, table))
    flexed("cuda:0", lambda s, b, h, q, k: s + on_the_host[q])
    assert "on_the_host" in next(iter(device.mixes))
    assert not device.waits
    flexed("cuda:0", lambda s, b, h, q, k: s * int((q > k).any()))
    assert device.waits


def test_blocks_that_a_gpu_would_not_take_are_refused(device):
    causal = create_block_mask(lambda b, h, q, k: q >= k, None, None, 300, 300, device="cuda:0")
    device.clear()
    flexed("cuda:0", None, 300, causal, grad=True)
    assert not (device.refused | device.mixes | device.waits)
    assert device.flex[0].blocks == pytest.approx(6 / 9)
    causal.q_indices = causal.q_indices.flip(-1)
    flexed("cuda:0", None, 300, causal)
    assert "transposed" in next(iter(device.refused))


@pytest.mark.parametrize("compute", [True, False])
def test_long_texts_without_the_arithmetic(compute):
    with simulated(compute) as device:
        (output, lse), inputs = flexed("cuda:0", None, 200, grad=True)
        output.sum().backward()
        assert output.shape == (2, 4, 200, 8)
        assert lse.shape == (2, 4, 200)
        assert inputs[0].grad is not None
        assert device.by_op["flex_attention"] == 1
        assert bool(host(output).any()) == compute


def test_nothing_is_left_behind():
    before = F.scaled_dot_product_attention, torch.compile, torch.cuda.mem_get_info
    with simulated():
        x = torch.ones(2).to("cuda:0")
        assert torch.cuda.mem_get_info("cuda:0")[0] > 0
    assert (F.scaled_dot_product_attention, torch.compile, torch.cuda.mem_get_info) == before
    assert not torch.cuda.is_available()
    assert not torch.accelerator.is_available()
    assert not torch.__future__.get_swap_module_params_on_conversion()
    with pytest.raises(AssertionError, match="not compiled with CUDA"):
        torch.ones(1, device="cuda:0")
    torch.ones(2, requires_grad=True).sum().backward()
    del x


# -- the flex attention written out -----------------------------------------------------------------------------------


def test_the_reference_is_flex_attention():
    q, k, v = (torch.randn(2, heads, 300, 8, generator=torch.Generator().manual_seed(1)) for heads in (4, 2, 2))
    mask = create_block_mask(lambda b, h, q, k: (q >= k) & (q - k < 150 + 10 * b) & (q != 7), 2, None, 300, 300, device="cpu")
    score_mod = lambda s, b, h, q, k: s - 0.01 * (h + 1) * (q - k) * (b + 1)  # noqa: E731
    output, lse = reference_flex.kernel(None, q, k, v, score_mod=score_mod, block_mask=mask, scaling=0.3, lse=True)
    with torch.no_grad():
        wanted = flex_attention(q, k, v, score_mod=score_mod, block_mask=mask, scale=0.3, enable_gqa=True)
    assert_close(output, wanted, atol=1e-5, rtol=1e-5)
    assert not output[:, :, 7].any()
    assert (lse[:, :, 7] == -torch.inf).all()


def test_the_reference_takes_blocks_at_their_word():
    q, k, v = (torch.randn(1, 1, 256, 8) for _ in range(3))
    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, 256, 256, device="cpu")
    right, _ = reference_flex.kernel(None, q, k, v, block_mask=mask)
    wrong = copy.copy(mask)
    wrong.full_kv_num_blocks = torch.zeros_like(mask.full_kv_num_blocks)  # a block is missing
    assert not torch.allclose(reference_flex.kernel(None, q, k, v, block_mask=wrong)[0], right)
    wrong.full_kv_num_blocks, wrong.full_kv_indices = mask.kv_num_blocks, mask.kv_indices  # one that is there twice
    assert not torch.allclose(reference_flex.kernel(None, q, k, v, block_mask=wrong)[0], right)


def test_the_gradients_of_the_reference():
    q, k, v = (torch.randn(1, heads, 5, 3, dtype=torch.double, requires_grad=True) for heads in (2, 1, 1))
    table = torch.randn(2, 5, dtype=torch.double, requires_grad=True)
    mask = create_block_mask(lambda b, h, q, k: (q >= k) & (q > 0), None, None, 5, 5, device="cpu")

    def call(q, k, v, table):
        score_mod = lambda s, b, h, i, j: s + table[h, (i - j).clamp(min=0)]  # noqa: E731
        output, lse = reference_flex.kernel(None, q, k, v, score_mod=score_mod, block_mask=mask, scaling=0.7, lse=True)
        return output, lse[:, :, 1:]

    assert torch.autograd.gradcheck(call, (q, k, v, table))


# -- every encoding ---------------------------------------------------------------------------------------------------


def one_pass(arch, name, layout, backend="sdpa", dtype=torch.float32):
    """A forward pass, and a backward pass where that is the layout, here and there."""
    inputs, learning = LAYOUTS[layout](), layout == "backward"
    model = patched(arch, name, backend).to(dtype)
    twin = twin_of(model)
    with torch.set_grad_enabled(learning):
        wanted = twin(tokens(), **inputs).logits
        with simulated() as device:
            model.to("cuda:0")
            ids, inputs = tokens().to("cuda:0"), moved(inputs)
            device.clear()
            found = model(ids, **inputs).logits
            faultless(device, WAITS[layout], name)
            if learning:
                found.square().mean().backward()
                faultless(device, WAITS[layout], name, passes=2)  # the backward pass may run parts of the first again
    if dtype != torch.float32:
        return
    real = host(inputs.get("attention_mask", torch.ones(2, LENGTH))).bool()
    assert_close(host(found)[real], wanted[real].detach(), **CLOSE)
    if learning:
        wanted.square().mean().backward()
        for (path, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None), path
            if one.grad is not None:
                assert_close(
                    host(one.grad),
                    other.grad,
                    atol=1e-4 * max(1.0, other.grad.abs().max().item()),
                    rtol=1e-3,
                    msg=lambda m, p=path: f"{p}: {m}",
                )


@pytest.mark.cover("name", "encoding_kind layout", layout=["plain", "padded"])
def test_every_encoding(name, layout):
    one_pass("llama", name, layout)


@pytest.mark.cover("encoding_kind", "layout", layout=["packed", "given", "backward"])
def test_documents_and_the_backward_pass(name, layout):
    one_pass("llama", name, layout)


@pytest.mark.cover("encoding_kind", "arch layout", arch=FAMILIES, layout=["padded", "packed"])
def test_families(arch, name, layout):
    one_pass(arch, name, layout, FAMILIES[arch])


MODELS = [("llama", "sdpa"), ("llama", "flex_attention"), *FAMILIES.items()]


@pytest.mark.slow
@pytest.mark.cover("name layout", "encoding_kind model", "encoding_stages layout model", layout=LAYOUTS, model=MODELS)
def test_every_encoding_in_every_layout(name, layout, model):
    arch, backend = model
    one_pass(arch, name, layout, backend)


@pytest.mark.cover("encoding_kind")
def test_loaded_for_flex_attention(name):
    one_pass("llama", name, "padded", "flex_attention")


@pytest.mark.cover("encoding_kind")
def test_half_precision(name):
    one_pass("llama", name, "padded", dtype=torch.bfloat16)


@torch.no_grad()
def decoded(model, cache, ids, mask, prompt, on_step):
    """Logits of a prompt in pieces that end at `prompt`, then of one token at a time."""
    parts, start = [], 0
    for end in (*prompt, *range(prompt[-1] + 1, prompt[-1] + 1 + STEPS)):
        on_step(start)
        parts.append(model(ids[:, start:end], attention_mask=None if mask is None else mask[:, :end], cache=cache).logits)
        start = end
    return torch.cat([host(x) for x in parts], 1)


def caches(kind, config):
    return StaticCache(config=config, max_cache_len=LENGTH + 9) if kind == "static" else DynamicCache(config=config)


def generated(arch, name, kind, padded, prompt=(LENGTH - STEPS,), backend="sdpa"):
    model, ids, mask = patched(arch, name, backend), tokens(), left_padded() if padded else None
    wanted = decoded(twin_of(model), caches(kind, model.config), ids, mask, prompt, lambda at: None)
    with simulated() as device:
        model.to("cuda:0")
        ids, there = ids.to("cuda:0"), None if mask is None else mask.to("cuda:0")
        device.clear()

        def step(start):
            if start == prompt[-1]:
                faultless(device, WAITS["chunks"], name, len(prompt))
                device.clear()

        found = decoded(model, caches(kind, model.config), ids, there, prompt, step)
        faultless(device, WAITS[kind], name, STEPS, decoding=True)
    real = torch.ones(2, LENGTH, dtype=torch.bool) if mask is None else mask.bool()
    assert_close(found[real], wanted[real], **CLOSE)


@pytest.mark.cover("name")
def test_decoding(name):
    generated("llama", name, "dynamic", padded=False)


@pytest.mark.cover("encoding_kind", "kind", kind=["dynamic", "static"])
def test_decoding_of_padded_prompts_in_pieces(name, kind):
    generated("llama", name, kind, padded=True, prompt=(150, LENGTH - STEPS))


@pytest.mark.cover("encoding_kind", "arch", arch=FAMILIES)
def test_decoding_in_families(arch, name):
    generated(arch, name, "dynamic", padded=True, backend=FAMILIES[arch])


# -- what does not grow -----------------------------------------------------------------------------------------------


STAGES = ("bias", "regions")
IN_THE_KERNEL = [name for name in ENCODINGS if any(map(ENCODINGS[name].has, STAGES)) and not ENCODINGS[name].data_dependent]
"""What flex attention carries."""


@torch.no_grad()
def felt(name, length, layers=1, padded=False, rows=1):
    """The device after a forward pass of a text of `length`."""
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 61}
    model = patched("llama", name, native=length // 2, reach=2 * length, num_hidden_layers=layers, **sizes).model
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, : length // 3] = 0
    with simulated(compute=False) as device:
        model.to("cuda:0")
        ids, inputs = tokens(length, rows).to("cuda:0"), {"attention_mask": mask.to("cuda:0")} if padded else {}
        device.clear()
        model(ids, use_cache=False, **inputs)
    return device


@pytest.mark.cover("name", "encoding_stages padded", name=IN_THE_KERNEL, padded=[False, True])
def test_launches_of_a_layer_do_not_depend_on_the_length(name, padded):
    short, long = ([felt(name, length, layers, padded) for layers in (1, 2)] for length in (256, 1024))
    assert short[1].launches - short[0].launches == long[1].launches - long[0].launches
    assert short[0].launches == long[0].launches
    assert len(long[1].flex) == 2 * len(long[0].flex) > 0


@pytest.mark.cover("encoding_kind", name=IN_THE_KERNEL)
def test_the_largest_tensor_is_linear_in_the_length(name):
    few, many = (felt(name, length).largest for length in (4096, 32768))
    assert many.bytes <= 8.5 * few.bytes, many.where


@pytest.mark.parametrize("name", ["alibi", "rerope"])
def test_the_largest_tensor_is_linear_in_the_length_of_padded_texts(name, monkeypatch):
    monkeypatch.setattr(sparse, "SCAN_PAIRS", 1 << 18)  # what is looked at in one go, whatever the length
    few, many = (felt(name, length, padded=True, rows=2).largest for length in (2048, 8192))
    assert many.bytes <= 4.5 * few.bytes, many.where


def test_the_doctor(device, tmp_path, monkeypatch):
    """The whole of it, as on a machine that has a GPU."""
    monkeypatch.setenv("HF_POSENC_CACHE", str(tmp_path / "cache"))
    tiny_model("llama").config.save_pretrained(tmp_path / "m")
    words = ["--encoding", "alibi", "shaw", "yarn", "--device", "cuda:0", "--dtype", "float32"]
    status = cli.main(["doctor", str(tmp_path / "m"), *words, "--output", str(tmp_path / "doctor.json")])
    found = json.loads((tmp_path / "doctor.json").read_text())
    assert status == 0 and found["machine"]["device"] == "simulated"
    assert {check["path"] for check in found["kernels"]} == {"flex", "blocks", "stock"} and not device.mixes
    assert all(trial["outcome"] == "passed" for trial in found["trials"] if trial["check"] != "saving"), "'device' among them"
