"""What a demanding user does to a model, and what must come of it: errors that leave no trace, layers, nesting, other tools."""

import copy
import io
import types

import numpy as np
import pytest
import torch
from design import FAMILIES
from tiny import NATIVE, TINY, WINDOW, options_for, tiny_config, tiny_model
from torch import nn
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

import hf_posenc
from hf_posenc.patching import patch_of

CLOSE = {"atol": 2e-5, "rtol": 2e-4}
EXACT = {"atol": 1e-6, "rtol": 1e-5}
ROTARY = [a for a in FAMILIES if patch_of(tiny_model(a)).architecture.native_table(patch_of(tiny_model(a)).native) is None]
every_encoding = pytest.mark.cover("name", "encoding_kind arch", arch=["llama", "gpt2"])


def snapshot(model):
    """Everything that a refused patch must not change."""
    return {
        "weights": {k: v.clone() for k, v in model.state_dict().items()},
        "buffers": {k: v.clone() for k, v in model.named_buffers()},
        "config": copy.deepcopy(model.config.to_dict()),
        "attention": model.config._attn_implementation,
        "modules": [(n, id(m)) for n, m in model.named_modules()],
        "hooks": [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
    }


def assert_untouched(model, before):
    after = snapshot(model)
    for kind in ("weights", "buffers"):
        assert list(after[kind]) == list(before[kind])
        assert all(torch.equal(after[kind][k], v) for k, v in before[kind].items())
    for kind in before.keys() - {"weights", "buffers"}:
        assert after[kind] == before[kind]


def refused(model, match, name, **arguments):
    before = snapshot(model)
    with pytest.raises(ValueError, match=match):
        hf_posenc.patch(model, name, **arguments)
    assert_untouched(model, before)


@pytest.fixture
def ids(batch):
    return batch["input_ids"][1:, :NATIVE]


# -- bad input --------------------------------------------------------------------------------------------------------

BAD = [
    ("yam", {}, r"unknown encoding 'yam'.*'yarn'.*Known: .*alibi"),
    ("", {}, "unknown encoding"),
    (None, {}, "unknown encoding None"),
    ("yarn", {"facotr": 4.0}, r"no option 'facotr'.*Did you mean 'factor'.*takes factor"),
    ("nope", {"factor": 4.0}, "takes no options"),
    ("yarn", {"factor": 0}, "factor must be .*, got 0"),
    ("yarn", {"factor": -4.0}, "factor must be .*, got -4"),
    ("yarn", {"factor": float("nan")}, "factor must be .*, got nan"),
    ("yarn", {"factor": float("inf")}, "factor must be .*, got inf"),
    ("yarn", {"factor": "4"}, "factor must be .*, got '4'"),
    ("yarn", {"factor": True}, "factor must be .*, got True"),
    ("yarn", {"factor": None}, "either factor= or target_length="),
    ("yarn", {"factor": 4.0, "target_length": 48}, "either factor= or target_length="),
    ("yarn", {}, r"either factor= or target_length= \(native context: 12 tokens\)"),
    ("yarn", {"target_length": 48.0}, "target_length must be an integer"),
    ("yarn", {"target_length": NATIVE - 1}, "target_length must be .*at least 12"),
    ("learned", {"max_positions": 0}, "max_positions"),
    ("rerope", {"window": -1}, "window"),
    ("alibi", {"layers": []}, "selects none of the 2 layers"),
    ("alibi", {"layers": slice(9, None)}, "selects none of the 2 layers"),
    ("alibi", {"layers": 2}, "layer 2 does not exist; the model has layers 0 to 1"),
    ("alibi", {"layers": [0, -3]}, "layer -3 does not exist"),
    ("alibi", {"layers": True}, "layer True does not exist"),
    ("alibi", {"layers": 0.5}, "layer 0.5 does not exist"),
    ("alibi", {"layers": ["0"]}, "layer '0' does not exist"),
    ("alibi", {"layers": "odd"}, "nor indices such as 0,3,7"),
    ("learned", {"layers": [0]}, "reaches every layer"),
    ("sinusoidal", {"layers": slice(1)}, "reaches every layer"),
]


@pytest.mark.parametrize(("name", "arguments", "match"), BAD)
def test_bad_input_is_refused_and_changes_nothing(name, arguments, match):
    refused(tiny_model("llama"), match, name, **arguments)


@pytest.mark.parametrize(("name", "arguments", "match"), BAD)
def test_bad_input_keeps_the_patch_that_was_there(name, arguments, match, ids):
    model = hf_posenc.patch(tiny_model("llama"), "kerple", layers=1)
    logits = model(ids).logits
    refused(model, match, name, **arguments)
    assert torch.equal(model(ids).logits, logits)
    assert [e.name for e in hf_posenc.inspect(model).encodings] == ["kerple"]


def test_a_patch_that_fails_halfway_leaves_no_trace(ids, monkeypatch):
    """An error in the last step of all, after modules and hooks are in."""
    from hf_posenc.patching import installing

    model = hf_posenc.patch(tiny_model("llama"), "t5")
    logits, stock, before = model(ids).logits, tiny_model("llama"), snapshot(model)
    clean, configure, failures = snapshot(stock), installing.configure, [RuntimeError("out of luck")]

    def fail_once(record, config):
        if failures:
            raise failures.pop()
        configure(record, config)

    monkeypatch.setattr(installing, "configure", fail_once)
    with pytest.raises(RuntimeError, match="out of luck"):
        hf_posenc.patch(model, "alibi", verify=False)
    before.pop("modules")  # the module in the slot is built again, with the same numbers
    assert_untouched(model, before)
    assert torch.equal(model(ids).logits, logits)
    failures.append(RuntimeError("out of luck"))
    with pytest.raises(RuntimeError, match="out of luck"):
        hf_posenc.patch(stock, "alibi", verify=False)
    assert_untouched(stock, clean)


def test_odd_head_dimension_is_refused_for_rotations_only():
    model = tiny_model("gpt2", hidden_size=60)  # four heads of 15
    refused(model, "odd", "rope")
    hf_posenc.patch(model, "alibi")


def test_a_model_without_attention_is_refused_with_the_reason():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", vocab_size=61, hidden_size=32, num_hidden_layers=1))
    refused(model, "'mamba' is not supported: it has no attention", "alibi")


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), None, "llama"])
def test_what_is_not_a_transformers_model_is_refused(thing):
    with pytest.raises(ValueError, match="expected a transformers model, got"):
        hf_posenc.patch(thing, "alibi")
    with pytest.raises(ValueError, match="expected a transformers model, got"):
        hf_posenc.unpatch(thing)


def test_wrapped_model_is_refused_with_the_remedy():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="unwrap it first"):
        hf_posenc.patch(nn.DataParallel(model), "alibi")
    with pytest.raises(ValueError, match="unwrap it first"):
        hf_posenc.patch(torch.compile(model), "alibi")


def test_attention_replaced_on_the_instance_is_refused():
    model = tiny_model("llama")
    attention = model.model.layers[1].self_attn
    attention.forward = types.MethodType(lambda self, *args, **kwargs: LlamaAttention.forward(self, *args, **kwargs), attention)
    refused(model, "attention of layer 1 .*replaced by another tool", "alibi")


def test_attention_replaced_on_a_patched_model_is_refused(ids):
    model = hf_posenc.patch(tiny_model("llama"), "alibi")
    attention = model.model.layers[0].self_attn
    attention.forward = types.MethodType(lambda self, *args, **kwargs: LlamaAttention.forward(self, *args, **kwargs), attention)
    refused(model, "replaced by another tool", "nope")
    hf_posenc.unpatch(model)  # the way back stays open
    del attention.forward
    assert torch.equal(model(ids).logits, tiny_model("llama")(ids).logits)


def test_attention_replaced_on_the_class_is_refused(monkeypatch):
    model = tiny_model("llama")
    original = LlamaAttention.forward
    monkeypatch.setattr(LlamaAttention, "forward", lambda self, *args, **kwargs: original(self, *args, **kwargs))
    refused(model, "replaced by another tool", "alibi")


@pytest.mark.parametrize("backend", ["flash_attention_2", "somebody_elses", "paged|sdpa"])
def test_backend_that_would_drop_the_scores_is_refused(backend):
    model = tiny_model("llama")
    model.config._attn_implementation_internal = backend  # as `set_attn_implementation` does where the kernels are installed
    for name in ("t5", "rerope"):
        refused(model, f"attention backend {backend!r} cannot carry.*eager, sdpa, flex_attention", name)
    hf_posenc.patch(model, "yarn", factor=4.0)
    hf_posenc.patch(model, "nope")  # nothing for the backend to do
    assert model.config._attn_implementation == backend


def test_backend_switched_to_one_that_drops_the_bias_fails_at_the_next_forward(ids):
    model = hf_posenc.patch(tiny_model("llama"), "t5")
    logits = model(ids).logits
    model.config._attn_implementation_internal = "flash_attention_2"
    for _ in range(2):
        with pytest.raises(ValueError, match=r"cannot carry"):
            model(ids)
    model.set_attn_implementation("sdpa")
    assert torch.equal(model(ids).logits, logits)


@pytest.mark.parametrize("native", [{"rope_type": "yarn", "factor": 4.0}, {"rope_type": "llama3", "factor": 4.0}])
def test_a_scaled_model_is_not_scaled_twice(native, ids):
    extra = {"original_max_position_embeddings": NATIVE}
    if native["rope_type"] == "llama3":
        extra |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model = tiny_model("llama", rope_parameters={"rope_theta": 10_000.0, **native, **extra}, max_position_embeddings=4 * NATIVE)
    stock = model(ids).logits
    for name in ("yarn", "ntk", "ntk_by_parts", "llama3"):
        refused(model, r"already scales its RoPE .*does not compose.*rope_parameters = ", name, factor=2.0)
    for name, options in (("linear", {"factor": 2.0}), ("rerope", {"window": 4}), ("alibi", {}), ("nope", {}), ("t5", {})):
        hf_posenc.patch(model, name, **options)
        assert not torch.allclose(model(ids).logits, stock)
    assert torch.equal(hf_posenc.patch(model, "rope")(ids).logits, stock)
    assert torch.equal(hf_posenc.unpatch(model)(ids).logits, stock)


def test_linear_on_a_scaled_model_stretches_the_scaled_positions(ids):
    scaled = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": NATIVE}
    model = tiny_model("llama", rope_parameters=scaled, max_position_embeddings=4 * NATIVE)
    even = model(ids, position_ids=2 * torch.arange(ids.shape[1])[None]).logits
    hf_posenc.patch(model, "linear", factor=2.0)
    assert_close(model(ids, position_ids=4 * torch.arange(ids.shape[1])[None]).logits, even, **CLOSE)


@pytest.mark.parametrize("name", ["rerope", "dual_chunk", "string_shift", "log_n", "yarn"])
@torch.no_grad()
def test_the_context_that_counts_is_that_of_the_model_not_of_an_earlier_patch(name, ids):
    """Windows, chunks and temperatures are parts of the length it was trained with, whatever its configuration says now."""
    options = options_for(name) if name == "yarn" else {}
    model = hf_posenc.patch(tiny_model("llama"), "linear", factor=4.0)
    assert model.config.max_position_embeddings == 4 * NATIVE
    hf_posenc.patch(model, name, **options)
    assert torch.equal(model(ids).logits, hf_posenc.patch(tiny_model("llama"), name, **options)(ids).logits)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "opt"])
def test_past_a_learned_table_is_an_error_before_the_index_error(arch):
    model = hf_posenc.patch(tiny_model(arch), "learned")
    long = torch.ones(1, NATIVE + 1, dtype=torch.long)
    model(long[:, :NATIVE])
    with pytest.raises(ValueError, match=r"position 12 lies past the learned table of 12 positions.*max_positions=13"):
        model(long)
    with pytest.raises(ValueError, match="past the learned table"):
        model.generate(long[:, :NATIVE], max_new_tokens=3, do_sample=False)
    hf_posenc.patch(model, "learned", max_positions=13)(long)


# -- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, (0, 1, 2, 3, 4)),
        ("all", (0, 1, 2, 3, 4)),
        (3, (3,)),
        (-1, (4,)),
        ([4, 0, -5], (0, 4)),
        ({1, 2}, (1, 2)),
        (range(1, 4), (1, 2, 3)),
        (slice(3, None, 4), (3,)),
        (slice(None, None, -2), (0, 2, 4)),
        (np.int64(2), (2,)),
        (torch.tensor([1, 3]), (1, 3)),
        ((i for i in (0, 1)), (0, 1)),
    ],
)
def test_layers_are_what_python_means_by_them(layers, expected):
    model = hf_posenc.patch(tiny_model("llama", num_hidden_layers=5), "t5", layers=layers)
    assert [e.layers for e in hf_posenc.inspect(model).encodings] == [expected]


@torch.no_grad()
def test_nope_on_every_fourth_layer_equals_a_hand_built_model(ids):
    model = tiny_model("llama", num_hidden_layers=8)
    reference = tiny_model("llama", num_hidden_layers=8)
    for layer in reference.model.layers[3::4]:
        layer.self_attn.register_forward_pre_hook(still, with_kwargs=True)
    hf_posenc.patch(model, "nope", layers=slice(3, None, 4))
    assert torch.equal(model(ids).logits, reference(ids).logits)


def still(attention, args, kwargs):
    cos, sin = kwargs["position_embeddings"]
    return args, kwargs | {"position_embeddings": (torch.ones_like(cos), torch.zeros_like(sin))}


@pytest.mark.parametrize("arch", ROTARY)
@torch.no_grad()
def test_native_rope_on_some_layers_is_the_stock_model(arch, ids):
    for layers in (0, 1, "all"):
        model = tiny_model(arch)
        stock = model(ids).logits
        hf_posenc.patch(model, "rope", layers=layers)
        used = patch_of(model).architecture.uses_slot(patch_of(model).attentions[layers if layers != "all" else 0])
        if used and not (layers == "all" and "no_rope_layers" in model.config.to_dict()):
            assert_close(model(ids).logits, stock, **EXACT)
        else:  # a layer without positions by design has been given some
            assert not torch.allclose(model(ids).logits, stock)


@pytest.mark.parametrize("arch", ROTARY)
@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_some_layers_in_both_modes(arch, layer, batch):
    from hf_posenc.patching import Request, apply

    native, other = tiny_model(arch), tiny_model(arch)
    hf_posenc.patch(native, "linear", factor=4.0, layers=layer)
    apply(patch_of(other), Request("linear", {"factor": 4.0}, (layer,)), native_slot=False)
    keep = batch["attention_mask"].bool()
    assert_close(native(**batch).logits[keep], other(**batch).logits[keep], **CLOSE)
    assert not torch.allclose(native(**batch).logits[keep], tiny_model(arch)(**batch).logits[keep])


@torch.no_grad()
def test_disjoint_layers_compose_in_any_order(ids):
    def build(*steps):
        model = tiny_model("llama", num_hidden_layers=4)
        for name, layers, options in steps:
            hf_posenc.patch(model, name, layers=layers, **options)
        return model

    steps = [("alibi", [0, 1], {}), ("yarn", [2], {"factor": 4.0}), ("nope", -1, {})]
    logits = build(*steps)(ids).logits
    assert_close(build(*reversed(steps))(ids).logits, logits, **EXACT)
    model = build(*steps)
    assert [(e.name, e.layers) for e in hf_posenc.inspect(model).encodings] == [("alibi", (0, 1)), ("yarn", (2,)), ("nope", (3,))]
    hf_posenc.patch(model, "rope", layers=[1, 2])  # overlaps two of the three: those are replaced whole
    assert [(e.name, e.layers) for e in hf_posenc.inspect(model).encodings] == [("nope", (3,)), ("rope", (1, 2))]
    assert_close(model(ids).logits, build(("nope", 3, {}))(ids).logits, **EXACT)
    assert torch.equal(hf_posenc.unpatch(model)(ids).logits, build()(ids).logits)


@torch.no_grad()
def test_an_input_encoding_replaces_everything(ids):
    model = hf_posenc.patch(tiny_model("llama"), "alibi", layers=0)
    hf_posenc.patch(model, "sinusoidal")
    assert_close(model(ids).logits, hf_posenc.patch(tiny_model("llama"), "sinusoidal")(ids).logits, rtol=0, atol=0)


# -- for the length of a block ----------------------------------------------------------------------------------------


@every_encoding
@torch.no_grad()
def test_patched_gives_the_stock_model_back(arch, name, ids):
    model = tiny_model(arch)
    before, logits = snapshot(model), model(ids).logits
    with pytest.raises(KeyError, match="body"), hf_posenc.patched(model, name, **options_for(name)) as inside:
        assert inside is model
        model(ids)
        raise KeyError("body")
    assert_untouched(model, before)
    assert torch.equal(model(ids).logits, logits)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("name", ["learned", "t5", "kerple"])
@torch.no_grad()
def test_patched_gives_trained_parameters_back(arch, name, ids):
    """The very parameters: an optimizer that knows them goes on training the model."""
    model = hf_posenc.patch(tiny_model(arch), name)
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.add_(0.01 * torch.randn_like(parameter))
    logits = model(ids).logits
    with hf_posenc.patched(model, "alibi"), hf_posenc.patched(model, "nope"):
        assert not torch.allclose(model(ids).logits, logits)
    assert torch.equal(model(ids).logits, logits)
    assert all(p is parameters[n] for n, p in model.named_parameters())


@torch.no_grad()
def test_patched_nests_and_survives_unpatch_inside(ids):
    model = hf_posenc.patch(tiny_model("llama"), "t5")
    outer = model(ids).logits
    with hf_posenc.patched(model, "yarn", factor=4.0):
        middle = model(ids).logits
        with hf_posenc.patched(model, "alibi", layers=0):
            assert len(hf_posenc.inspect(model).encodings) == 1
        assert torch.equal(model(ids).logits, middle)
        hf_posenc.unpatch(model)
    assert torch.equal(model(ids).logits, outer)


def test_patched_with_bad_input_never_enters(ids):
    model = hf_posenc.patch(tiny_model("llama"), "t5")
    before = snapshot(model)
    with pytest.raises(ValueError, match="unknown encoding"), hf_posenc.patched(model, "yam"):
        pytest.fail("entered")
    assert_untouched(model, before)


@torch.no_grad()
def test_unpatch_of_a_stock_model_does_nothing(ids):
    model = tiny_model("llama")
    before = snapshot(model)
    assert hf_posenc.unpatch(model) is model
    assert_untouched(model, before)


# -- attention backends and weights -----------------------------------------------------------------------------------


@torch.no_grad()
def test_switching_the_attention_keeps_the_encoding(batch):
    model, keep = hf_posenc.patch(tiny_model("llama"), "alibi"), batch["attention_mask"].bool()
    logits = model(**batch).logits[keep]
    for backend in ("eager", "sdpa", "eager"):
        model.set_attn_implementation(backend)
        assert_close(model(**batch).logits[keep], logits, **CLOSE)
        assert hf_posenc.inspect(model).attention == backend
    hf_posenc.unpatch(model)
    assert model.config._attn_implementation == "eager"
    stock = tiny_model("llama")
    stock.set_attn_implementation("eager")
    assert torch.equal(model(**batch).logits, stock(**batch).logits)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@torch.no_grad()
def test_attention_weights_show_the_bias(backend, ids):
    model = hf_posenc.patch(tiny_model("llama"), "alibi")
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.zero_()  # all content scores 0: what remains is the bias
    model.set_attn_implementation(backend)
    weights = model(ids, output_attentions=True).attentions
    slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8])[:, None, None]
    i = torch.arange(ids.shape[1])
    expected = (-slopes * (i[:, None] - i)).masked_fill(i > i[:, None], -torch.inf).softmax(-1)
    assert len(weights) == 2
    for layer in weights:
        assert_close(layer.sum(-1), torch.ones(layer.shape[:-1]))
        assert_close(layer[0], expected)


# -- other tools ------------------------------------------------------------------------------------------------------


def lora(model, **changes):
    peft = pytest.importorskip("peft")
    targets = ["c_attn"] if model.config.model_type == "gpt2" else ["q_proj", "v_proj"]
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False, **changes))


def train_steps(model, ids, steps=3):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model.train()
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


@pytest.mark.parametrize("name", ["alibi", "yarn", "t5", "nope", "rerope"])
def test_peft_before_or_after(name, ids):
    options = options_for(name)
    torch.manual_seed(3)
    first = lora(hf_posenc.patch(tiny_model("llama"), name, **options))
    torch.manual_seed(3)
    second = lora(tiny_model("llama"))
    second = hf_posenc.patch(second, name, **options)
    if name == "t5":
        first.base_model.model.model.positional_encoding.table.data.copy_(second.base_model.model.model.positional_encoding.table.data)
    second.load_state_dict(first.state_dict())
    assert_close(first(ids).logits, second(ids).logits, **CLOSE)
    for model in (first, second):
        losses = train_steps(model, ids)
        assert losses[-1] < losses[0]
    tuned = first(ids).logits
    assert torch.equal(hf_posenc.unpatch(hf_posenc.patch(first, "nope")).get_base_model()(ids).logits, first(ids).logits)
    assert not torch.allclose(first(ids).logits, tuned)


@pytest.mark.parametrize("name", ["t5", "kerple", "learned"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_peft_trains_its_copy_of_a_learned_encoding(name, backend, ids, tmp_path):
    base = hf_posenc.patch(tiny_model("llama"), name)
    base.set_attn_implementation(backend)
    model = lora(base, modules_to_save=["positional_encoding"])
    wrapper = model.base_model.model.model.positional_encoding
    original = [p.clone() for p in wrapper.original_module.parameters()]
    fingerprint = hf_posenc.inspect(model).fingerprint
    untrained = model(ids).logits
    losses = train_steps(model, ids)
    assert losses[-1] < losses[0]
    trained = list(wrapper.modules_to_save["default"].parameters())
    assert all(torch.equal(a, b) for a, b in zip(original, wrapper.original_module.parameters(), strict=True))
    assert not any(torch.allclose(a, b) for a, b in zip(original, trained, strict=True))
    assert hf_posenc.inspect(model).fingerprint != fingerprint
    logits = model(ids).logits
    assert not torch.allclose(logits, untrained)

    with hf_posenc.patched(model, "nope"):  # evaluate something else in between
        assert not torch.allclose(model(ids).logits, logits)
    assert torch.equal(model(ids).logits, logits)

    merged = model.merge_and_unload()
    assert_close(merged(ids).logits, logits, **CLOSE)
    with hf_posenc.patched(merged, "nope"):
        pass
    assert_close(merged(ids).logits, logits, **CLOSE)
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=backend)
    assert torch.equal(again(ids).logits, merged(ids).logits)


def test_peft_trains_a_grown_table(ids):
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)  # it would change the loss by more than a step does
    model = lora(hf_posenc.patch(tiny_model("gpt2", **dropout), "learned", max_positions=20), modules_to_save=["wpe"])
    losses = train_steps(model, ids)
    assert losses[-1] < losses[0]
    logits = model(ids).logits
    with hf_posenc.patched(model, "alibi"):
        assert not torch.allclose(model(ids).logits, logits)
    assert torch.equal(model(ids).logits, logits)


@pytest.mark.cover("name", "encoding_kind arch", arch=["llama", "gpt2", "gemma3_text"])
@torch.no_grad()
def test_pickle(arch, name, ids):
    stock = tiny_model(arch)
    model = hf_posenc.patch(tiny_model(arch), name, layers="all", **options_for(name))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert torch.equal(hf_posenc.unpatch(again)(ids).logits, stock(ids).logits)
    assert hf_posenc.inspect(model).encodings


@every_encoding
@torch.no_grad()
def test_half_and_back_keeps_the_angles(arch, name, ids):
    """A cast rounds weights, never frequencies, slopes or angles: neither in the model nor after unpatch."""
    model = hf_posenc.patch(tiny_model(arch), name, **options_for(name))
    if patch_of(model).placements[0].beside and arch != "gpt2":
        return  # a rotation that stays is that of transformers, which rounds it
    rounded = hf_posenc.patch(tiny_model(arch), name, **options_for(name))
    rounded.load_state_dict({k: v.half().float() for k, v in model.state_dict().items()})
    model.half()
    assert model(ids).logits.dtype == torch.float16
    assert torch.equal(model.float()(ids).logits, rounded(ids).logits)
    assert torch.equal(model.double().float()(ids).logits, rounded(ids).logits)
    hf_posenc.unpatch(model.to(torch.bfloat16))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(ids).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("arch", ROTARY)
@torch.no_grad()
def test_weights_initialised_again_leave_the_encoding(arch, ids):
    """transformers computes the frequencies of every rotary module anew when it initialises a model: not those that a patch put there."""
    for layers in (None, 0):
        model = hf_posenc.patch(tiny_model(arch), "nope", layers=layers)
        weights, logits = copy.deepcopy(model.state_dict()), model(ids).logits
        model.apply(model._init_weights).load_state_dict(weights)
        assert torch.equal(model(ids).logits, logits)

        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(tiny_config(arch)).eval()
        hf_posenc.patch(empty, "nope", layers=layers).to_empty(device="cpu").init_weights()
        empty.load_state_dict(weights)
        assert torch.equal(empty(ids).logits, logits)


@torch.no_grad()
def test_patched_on_its_own_and_in_its_model(ids, tmp_path):
    """A backbone, patched alone and later seen from the model around it."""
    model = tiny_model("llama")
    hf_posenc.patch(model.model, "alibi")
    assert torch.equal(model(ids).logits, hf_posenc.patch(tiny_model("llama"), "alibi")(ids).logits)
    hf_posenc.patch(model, "kerple")
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)
    model.model.save_pretrained(tmp_path)
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(ids)[0], model.model(ids)[0])


# -- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.cover("encoding_kind")
@torch.no_grad()
def test_compile(name, ids):
    torch._dynamo.reset()
    model = hf_posenc.patch(tiny_model("llama"), name, **options_for(name))
    fullgraph = hf_posenc.inspect(model).encodings[0].place == "in the native slot"
    logits = model(ids).logits
    compiled = torch.compile(model, fullgraph=fullgraph, backend="aot_eager")
    assert_close(compiled(ids).logits, logits, **CLOSE)
    assert_close(compiled(ids[:, :7]).logits, model(ids[:, :7]).logits, **CLOSE)


# -- generation -------------------------------------------------------------------------------------------------------

GENERATED = ["alibi", "yarn", "nope", "rerope", "learned", "dynamic_ntk", "t5"]


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@torch.no_grad()
def test_sampling_is_the_same_without_cache(arch, name, batch):
    model = hf_posenc.patch(tiny_model(arch), name, **options_for(name))

    def sample(**settings):
        torch.manual_seed(5)
        return model.generate(**batch, do_sample=True, num_return_sequences=3, max_new_tokens=6, min_new_tokens=6, **settings)

    cached = sample()
    assert cached.shape[0] == 6
    assert torch.equal(cached, sample(use_cache=False))
    assert torch.equal(cached, sample(cache_implementation="static", disable_compile=True))


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize("draft", ["patched", "stock"])
@torch.no_grad()
def test_assisted_generation(name, draft, ids):
    model = hf_posenc.patch(tiny_model("llama"), name, **options_for(name))
    assistant = tiny_model("llama", seed=0 if draft == "patched" else 1, num_hidden_layers=1)
    if draft == "patched":
        hf_posenc.patch(assistant, "alibi")
    settings = {"do_sample": False, "max_new_tokens": 10, "eos_token_id": TINY["vocab_size"]}
    expected = model.generate(ids, **settings)
    assert torch.equal(model.generate(ids, assistant_model=assistant, **settings), expected)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **settings), expected)


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize("arch", ["mistral", "gemma3_text"])
@torch.no_grad()
def test_sliding_caches_past_their_window(arch, name, batch):
    model = hf_posenc.patch(tiny_model(arch), name, layers="all", **options_for(name))
    settings = {"do_sample": False, "max_new_tokens": 3 * WINDOW, "min_new_tokens": 3 * WINDOW}
    expected = model.generate(**batch, use_cache=False, **settings)
    assert torch.equal(model.generate(**batch, **settings), expected)
    assert torch.equal(model.generate(**batch, cache_implementation="static", disable_compile=True, **settings), expected)


# -- other ways of calling a model --------------------------------------------------------------------------------------

every_kind = pytest.mark.parametrize("name", ["alibi", "rerope", "learned", "sinusoidal", "yarn", "dynamic_ntk", "t5", "nope"])


@every_kind
@pytest.mark.parametrize("arch", ["llama", "gpt2", "opt"])
@torch.no_grad()
def test_ways_of_calling(arch, name, batch):
    model = hf_posenc.patch(tiny_model(arch), name, **options_for(name))
    ids, mask = batch.values()
    padded, bare = model(**batch).logits, model(ids[1:]).logits
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embedded, attention_mask=mask).logits, padded)
    assert_close(model(**batch, logits_to_keep=1).logits, padded[:, -1:], **CLOSE)
    right = {"input_ids": nn.functional.pad(ids[1:], (0, 3)), "attention_mask": nn.functional.pad(mask[1:], (0, 3))}
    assert_close(model(**right).logits[:, :-3], bare, **CLOSE)
    first = model(ids[1:, :9], use_cache=True)
    assert_close(model(ids[1:, 9:], past_key_values=first.past_key_values).logits, bare[:, 9:], **CLOSE)
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[None, None]
    assert_close(model(ids[1:], attention_mask=causal).logits, bare, **CLOSE)
    floats = torch.zeros(causal.shape).masked_fill(~causal, torch.finfo(torch.float32).min)
    assert_close(model(ids[1:], attention_mask=floats).logits, bare, **CLOSE)


@every_kind
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@torch.no_grad()
def test_generation_from_embeddings_and_in_chunks(arch, name, batch):
    model = hf_posenc.patch(tiny_model(arch), name, **options_for(name))
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    expected = model.generate(**batch, **settings)
    assert torch.equal(model.generate(**batch, prefill_chunk_size=5, cache_implementation="dynamic", **settings), expected)
    embedded = model.get_input_embeddings()(batch["input_ids"])
    generated = model.generate(inputs_embeds=embedded, attention_mask=batch["attention_mask"], **settings)
    assert torch.equal(generated, expected[:, batch["input_ids"].shape[1] :])


@every_kind
@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
@torch.no_grad()
def test_virtual_tokens(kind, name, ids):
    """Tokens that PEFT puts before the text, as embeddings or in the cache, move it along."""
    peft = pytest.importorskip("peft")

    def generates_as_it_evaluates(model):
        model = peft.get_peft_model(model, getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
        generated = model.generate(input_ids=ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        return torch.equal(model(input_ids=generated[:, :-1]).logits[:, -6:].argmax(-1), generated[:, -6:])

    if not generates_as_it_evaluates(tiny_model("llama")):
        pytest.skip("the installed PEFT and transformers lose virtual tokens of a stock model too")
    assert generates_as_it_evaluates(hf_posenc.patch(tiny_model("llama"), name, **options_for(name)))


def test_a_model_that_shares_the_config_object_is_unaffected():
    model = tiny_model("llama")
    other = type(model)(model.config)
    before = copy.deepcopy(other.config.to_dict())
    hf_posenc.patch(model, "yarn", factor=4.0)
    assert other.config.to_dict() == before


@torch.no_grad()
@pytest.mark.parametrize("arch", ["gpt2", "opt", "llama"])
def test_growing_a_learned_table_again_keeps_what_it_learned(arch):
    model = hf_posenc.patch(tiny_model(arch), "learned", max_positions=14)

    def table():
        return next(p for n, p in model.named_parameters() if "positional_encoding" in n or "wpe" in n or "embed_positions" in n)

    table().fill_(3.0)
    hf_posenc.patch(model, "learned", max_positions=30)
    assert torch.equal(table()[-30:], torch.full((30, 64), 3.0))


# -- inspect ----------------------------------------------------------------------------------------------------------


def test_inspect_names_the_layers_that_see_no_position():
    def without(arch, *patches):
        model = tiny_model(arch)
        for name, layers in patches:
            hf_posenc.patch(model, name, layers=layers)
        report = hf_posenc.inspect(model)
        assert ("no positional encoding in" in str(report)) == bool(report.without)
        return report.without

    assert without("gpt2") == without("llama") == without("gpt2", ("alibi", "all")) == ()
    assert without("gpt2", ("alibi", 0)) == (1,)  # the table feeds every layer, and is gone
    assert without("gpt2", ("alibi", 0), ("rope", 1)) == ()
    assert without("gpt2", ("sinusoidal", None)) == without("llama", ("alibi", 0)) == ()
    assert without("llama", ("nope", 1)) == (1,)
    assert without("smollm3") == (1,)  # by design
    assert without("smollm3", ("alibi", "all")) == ()


@pytest.mark.parametrize("arch", ROTARY)
def test_inspect_notices_a_slot_that_something_else_has_written_to(arch):
    for layers in ("all", 0):
        model = hf_posenc.patch(tiny_model(arch), "rope", theta=77.0, layers=layers)
        assert hf_posenc.inspect(model).whole and "CHANGED" not in str(hf_posenc.inspect(model.double().float()))
        slot = next(module for module in model.modules() if type(module).__name__ == "RotarySlot")
        getattr(slot.rotary, "_".join(filter(None, (next(iter(slot.contents)), "inv_freq"))))[0] = 0.5
        assert not hf_posenc.inspect(model).whole and "CHANGED" in str(hf_posenc.inspect(model))
        assert hf_posenc.inspect(hf_posenc.patch(model, "rope", theta=77.0, layers=layers)).whole


def test_inspect_says_where_things_are():
    def live(arch, name, **arguments):
        report = hf_posenc.inspect(hf_posenc.patch(tiny_model(arch), name, **arguments))
        return report.encodings[0].place, report.stock_checkpoint, report.encodings[0].parameters, report.context_length

    assert live("llama", "yarn", factor=4.0) == ("in the native slot", True, 0, 4 * NATIVE)
    assert live("llama", "yarn", factor=4.0, layers=0) == ("in the native slot", False, 0, 4 * NATIVE)
    assert live("llama", "alibi") == ("in the attention function", False, 0, NATIVE)
    assert live("llama", "kerple") == ("in the attention function", False, 8, NATIVE)
    assert live("llama", "sinusoidal") == ("in the embeddings", False, 0, NATIVE)
    assert live("llama", "nope") == ("with the native encoding switched off", False, 0, NATIVE)
    assert live("gpt2", "learned", max_positions=20) == ("in the native slot", False, 20 * 64, 20)
    assert live("gpt2", "rope") == ("in the attention function", False, 0, NATIVE)
    stock = hf_posenc.inspect(tiny_model("llama"))
    assert stock.stock_checkpoint and not stock.encodings and "patched: no" in str(stock)


def fingerprints_change(model, *tensors):
    seen = {hf_posenc.inspect(model).fingerprint}
    for tensor in tensors:
        with torch.no_grad():
            tensor.mul_(1.01)
        seen.add(hf_posenc.inspect(model).fingerprint)
    assert len(seen) == 1 + len(tensors)


def test_fingerprint_is_of_the_live_numbers():
    assert hf_posenc.inspect(tiny_model("llama")).fingerprint == hf_posenc.inspect(tiny_model("llama", seed=1)).fingerprint
    model = tiny_model("llama")
    fingerprints_change(model, model.model.rotary_emb.inv_freq)
    model = hf_posenc.patch(tiny_model("llama"), "alibi")
    fingerprints_change(model, model.model.positional_encoding.slopes)
    model = hf_posenc.patch(tiny_model("llama"), "yarn", factor=4.0)
    fingerprints_change(model, model.model.rotary_emb.rotary.inv_freq)
    model = hf_posenc.patch(tiny_model("llama"), "yarn", factor=4.0, layers=1)
    fingerprints_change(model, model.model.layers[1].self_attn.posenc_rotary.rotary.inv_freq, model.model.rotary_emb.inv_freq)
    model = tiny_model("gpt2")
    fingerprints_change(model, model.transformer.wpe.weight)
    model = hf_posenc.patch(model, "learned", max_positions=20)
    fingerprints_change(model, model.transformer.wpe.weight)


def test_fingerprint_tells_patches_apart():
    variants = [{}, {"layers": 0}, {"layers": 1}, {"layers": [0, 1], "factor": 2.0}, {"layers": 0, "factor": 2.0}]
    seen = [hf_posenc.inspect(hf_posenc.patch(tiny_model("llama"), "yarn", **{"factor": 4.0, **v})).fingerprint for v in variants]
    assert len(set(seen)) == len(variants)
    model = hf_posenc.patch(tiny_model("llama"), "nope", layers=0)
    first = hf_posenc.inspect(model).fingerprint
    assert hf_posenc.inspect(hf_posenc.patch(model, "nope", layers=1)).fingerprint != first
    assert hf_posenc.inspect(hf_posenc.unpatch(model)).fingerprint == hf_posenc.inspect(tiny_model("llama")).fingerprint
