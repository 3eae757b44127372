"""Every registered encoding in every registered architecture. Nothing here names either."""

import copy
import subprocess
import sys
from functools import partial

import pytest
import torch
from design import FAMILIES
from texts import text_of
from tiny import NATIVE, WINDOW, off_start, options_for, started, tiny_for, tiny_model
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing import assert_close
from transformers import AttentionInterface, AutoModelForCausalLM, StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import hf_posenc
from hf_posenc.architectures import ARCHITECTURES
from hf_posenc.attention import PREFIX, probe
from hf_posenc.attention.cached import STATE, arguments_of, by_name
from hf_posenc.encodings import ENCODINGS, Geometry
from hf_posenc.encodings.base import products
from hf_posenc.encodings.definition import self_attention
from hf_posenc.evaluation import embedded_corpus
from hf_posenc.patching import Request, apply, patch_of, running

once_each = pytest.mark.cover("name", "arch")
every_kind = partial(pytest.mark.cover, "name family_slot", "encoding_kind family_kind", "arch")
"""Which pairs of family and encoding a test is run with, see `design`: each of them once; or each encoding with a table and a rotation, and
each kind of encoding in each kind of family. `--all-pairs` runs all with all."""
CLOSE = {"atol": 2e-5, "rtol": 2e-4}


def patched_model(arch, name, seed=0, **changes):
    model = tiny_for(name, arch, seed, **changes)
    torch.manual_seed(7)
    return off_start(hf_posenc.patch(model, name, layers="all", **options_for(name)))


def in_pieces(model, ids, steps, mask=None):
    """Logits of `ids` [B,L], so many tokens at a time."""
    parts, cache, seen = [], None, 0
    for piece in ids.split(steps, 1):
        seen += piece.shape[1]
        out = model(piece, attention_mask=None if mask is None else mask[:, :seen], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    return torch.cat(parts, 1)


@every_kind()
@torch.no_grad()
def test_decoding_equals_evaluation(arch, name, batch):
    model, (ids, mask) = patched_model(arch, name), batch.values()
    full = model(**batch).logits
    for steps in ([12, 1, 1, 1, 1, 1], [3, 7, 2, 5]):
        assert_close(in_pieces(model, ids, steps, mask)[mask.bool()], full[mask.bool()], **CLOSE)


@pytest.mark.parametrize("name", ENCODINGS)
def test_starts_as_it_says(name):
    encoding, logits = started(name, **options_for(name))
    if encoding.starts_as:
        assert_close(logits, started(encoding.starts_as)[1], **CLOSE)


@pytest.mark.parametrize("name", [n for n in ENCODINGS if n != "seqpe"])  # PyTorch cannot copy an encoder layer on fake tensors
def test_is_made_without_values(name):
    """As compilers do, and those who plan for memory."""
    with FakeTensorMode():
        encoding = hf_posenc.create(name, Geometry(64, 4, 2, 16, max_positions=NATIVE, vocab_size=61), **options_for(name))
        assert all(isinstance(x, FakeTensor) for x in (*encoding.parameters(), *encoding.buffers()))


@once_each
@torch.no_grad()
def test_left_padding_is_invisible(arch, name, batch):
    model, pad = patched_model(arch, name), 5
    padded = model(**batch).logits[0, pad:]
    assert_close(padded, model(batch["input_ids"][:1, pad:]).logits[0], **CLOSE)


@once_each
@torch.no_grad()
def test_packed_documents_are_independent(arch, name, batch):
    def packed_and_alone(model):
        packed = model(ids, position_ids=positions, use_cache=False).logits
        return packed, torch.cat([model(part, use_cache=False).logits for part in ids.split((4, 10), 1)], 1)

    ids, positions = batch["input_ids"][1:, 3:], torch.cat((torch.arange(4), torch.arange(10)))[None]
    packs = ARCHITECTURES[arch].packs
    assert torch.allclose(*packed_and_alone(tiny_model(arch)), **CLOSE) == packs
    if packs:
        assert_close(*packed_and_alone(patched_model(arch, name)), **CLOSE)


@once_each
@torch.no_grad()
def test_unpatch_is_exact(arch, name, batch):
    short = {k: v[:, 5:] for k, v in batch.items()}
    model = tiny_model(arch)
    before, keys, config = model(**short).logits, list(model.state_dict()), copy.deepcopy(model.config.to_dict())
    hf_posenc.patch(model, name, layers="all", **options_for(name))
    model(**short)
    hf_posenc.unpatch(model)
    assert torch.equal(model(**short).logits, before)
    assert list(model.state_dict()) == keys
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == tiny_model(arch).config._attn_implementation


@once_each
@torch.no_grad()
def test_copies_live_their_own_lives(arch, name, batch):
    short = {k: v[:, 5:] for k, v in batch.items()}
    other = tiny_for(name, arch)
    stock = other(**short).logits
    model = patched_model(arch, name)
    assert torch.equal(other(**short).logits, stock)
    ours = model(**short).logits
    twin = copy.deepcopy(model)
    assert torch.equal(twin(**short).logits, ours)
    hf_posenc.unpatch(model)
    assert torch.equal(twin(**short).logits, ours)
    hf_posenc.unpatch(twin)
    assert torch.equal(twin(**short).logits, stock)


@once_each
@torch.no_grad()
def test_backends_agree(arch, name, batch):
    model, keep = patched_model(arch, name), batch["attention_mask"].bool()
    stock = tiny_model(arch)
    logits = {}
    with torch.compiler.set_stance("force_eager"):  # flex without a compiler: the same numbers, in a fraction of the time
        for backend in ("eager", "sdpa", "flex_attention"):
            if backend == "sdpa" and getattr(stock.config, "attn_logit_softcapping", None):
                continue  # it has no softcap: transformers refuses that from 5.23 on, and left it out before
            try:
                stock.set_attn_implementation(backend)
                stock(batch["input_ids"][:, -NATIVE:])
            except ValueError:
                continue  # this family does not have the backend
            model.set_attn_implementation(backend)
            logits[backend] = model(**batch).logits[keep]
    for backend, value in logits.items():
        assert_close(value, logits["eager"], msg=lambda m, b=backend: f"{b}: {m}", **CLOSE)


@pytest.mark.cover("name", "encoding_kind family_kind")
@torch.no_grad()
def test_scores_are_what_the_model_computes(arch, name, batch):
    model = tiny_for(name, arch)
    record = patch_of(model)
    torch.manual_seed(7)
    apply(record, Request(name, options_for(name), (0, 1)), native_slot=False)
    site, calls = record.placements[0], []
    if not site.in_attention:
        return  # no score is changed: the permutation and shift tests speak for these
    backend = model.config._attn_implementation
    function = ALL_ATTENTION_FUNCTIONS[backend]

    def spy(module, q, k, v, mask, **kwargs):
        output = function(module, q, k, v, mask, **kwargs)
        calls.append((module, q, k, v, kwargs, output[0]))
        return output

    AttentionInterface.register(backend, spy)
    try:
        model(batch["input_ids"], use_cache=False)
    finally:
        AttentionInterface.register(backend, function)
    _, q, k, v, kwargs, output = calls[site.layers[0]]
    pos = torch.arange(q.shape[2]).expand(len(q), -1)
    places = pos if site.encoding.axes == 1 else pos.expand(site.encoding.axes, -1, -1)
    if site.encoding.has("locate"):
        places = site.encoding.locate(text_of(site.encoding, batch["input_ids"]))
    expected = reference_attention(site.encoding, q.double(), k.double(), v.double(), pos, places, kwargs, record, site.layers[0])
    assert_close(output, expected.float(), **CLOSE)


def pairs_seen(record, layer, pos):
    """Which pairs [B,1,Q,K] of tokens at `pos` [B,Q] meet in a layer."""
    distance = pos[:, :, None] - pos[:, None, :]
    slides = record.architecture.layer_types(record.backbone.config)[layer] == "sliding_attention"
    return ((distance >= 0) & (distance < (WINDOW if slides else len(pos[0]))))[:, None]


def reference_attention(encoding, q, k, v, pos, places, kwargs, record, layer):
    """Softmax of the dense definition, in float64, under the causal mask, the window, softcap and sinks of the layer."""
    seen, scaling = pairs_seen(record, layer, pos), kwargs["scaling"]
    block = encoding.block(q, k, places, places, scaling, kwargs.get(STATE), seen)
    if (cap := kwargs.get("softcap")) is None:
        scores = encoding.scores(q, k, places, places, scaling, kwargs.get(STATE), seen)
    else:
        met = encoding.has("meet")
        scores = products(*encoding.meet(block)) * scaling if met else encoding.content_scores(q, block.k, pos, pos, scaling)
        scores = cap * torch.tanh(scores / cap) + encoding.bias_matrix(pos, pos) + encoding.context_bias(q, block.k, pos, pos, scaling)
        scores = encoding.mix(scores, block) if encoding.has("mix") else scores
    if encoding.has("normalise"):
        weights = encoding.normalise(scores, block).masked_fill(~seen, 0)
    elif kwargs.get("s_aux") is not None:
        sinks = kwargs["s_aux"].double().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.cat((scores.masked_fill(~seen, -torch.inf), sinks), -1).softmax(-1)[..., :-1]
    else:
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    output = weights @ encoding.value(v, pos).repeat_interleave(q.shape[1] // v.shape[1], 1)
    return (output + encoding.attended(weights, block) if encoding.has("attended") else output).transpose(1, 2)


INFUSING = [name for name in ENCODINGS if ENCODINGS[name].has("infuse")]


@pytest.mark.cover("name family_kind", name=INFUSING)
@torch.no_grad()
def test_layers_with_infused_input_are_what_is_defined(arch, name, batch):
    """In float64, with the projections of a model without any encoding, which makes queries, keys and values of one input."""
    model, free = patched_model(arch, name), patched_model(arch, "nope").double()
    placement, calls, given = patch_of(model).placements[0], [], {}
    layer = placement.layers[0]

    def attend(module, q, k, v, mask, **kwargs):
        output = function(module, q, k, v, mask, **kwargs)
        calls.append((kwargs, output[0]))
        return output

    def keep(attention, args, kwargs):
        given.update(by_name(attention, args, kwargs))

    attention = patch_of(model).attentions[layer]
    handle, backend = attention.register_forward_pre_hook(keep, with_kwargs=True), f"{PREFIX}eager"
    function = ALL_ATTENTION_FUNCTIONS[backend]
    AttentionInterface.register(backend, attend)
    try:
        with running.implementation(patch_of(model), backend):
            model(batch["input_ids"], use_cache=False)
    finally:
        AttentionInterface.register(backend, function)
        handle.remove()

    def project(x):
        with probe.looking() as seen, running.implementation(patch_of(free), probe.NAME):
            (stock := patch_of(free).attentions[layer])(**given | {arguments_of(attention)[0]: x})
        return seen[stock][:3]

    x, (kwargs, output) = given[arguments_of(attention)[0]].double(), calls[layer]
    pos = torch.arange(x.shape[1]).expand(len(x), -1)
    more = {"scaling": kwargs["scaling"], "softcap": kwargs.get("softcap"), "sinks": kwargs.get("s_aux")}
    expected = self_attention(placement.encoding, x, pos, project, pairs_seen(patch_of(model), layer, pos), **more)
    assert_close(output, expected.float(), **CLOSE)


IN_A_SLOT = [name for name in ENCODINGS if ENCODINGS[name].has("rotate", "embed")]


@every_kind(name=IN_A_SLOT)
@torch.no_grad()
def test_native_slot_equals_attention_function(arch, name, batch):
    native, other = patched_model(arch, name), tiny_for(name, arch)
    if all(placement.in_attention for placement in patch_of(native).placements):
        return  # there is no other place
    torch.manual_seed(7)
    apply(patch_of(other), Request(name, options_for(name), (0, 1)), native_slot=False)
    off_start(other)
    keep = batch["attention_mask"].bool()
    assert_close(other(**batch).logits[keep], native(**batch).logits[keep], **CLOSE)


@once_each
@torch.no_grad()
def test_order_is_seen_through_the_encoding_alone(arch, name, batch):
    """One layer, last token: without any encoding the order of the earlier tokens cannot matter; with one it must."""
    ids = batch["input_ids"][1:, :WINDOW]
    model = patched_model(arch, name, num_hidden_layers=1)
    swapped = ids[:, [3, 2, 4, 0, 1, 5]]
    scale = getattr(model.config, "logit_scale", None) or 1.0  # of a family that shrinks its logits, and all that is seen in them
    difference = (model(ids).logits[:, -1] - model(swapped).logits[:, -1]).abs().max().item() / scale
    if hf_posenc.describe(name).stages:
        assert difference > 3e-5
    else:
        assert difference < 3e-6


@once_each
@torch.no_grad()
def test_relative_encodings_see_distances_only(arch, name, batch):
    if not hf_posenc.describe(name).relative:
        return
    model, ids = patched_model(arch, name), batch["input_ids"][1:]
    if patch_of(model).placements[0].beside and not ARCHITECTURES[arch].rotates:
        return  # the table of the family is still there
    positions = torch.arange(ids.shape[1])[None]
    assert_close(model(ids, position_ids=positions + 9).logits, model(ids, position_ids=positions).logits, **CLOSE)


@once_each
def test_training(arch, name):
    """A few steps on the embedded corpus: the loss falls, every parameter moves, and decoding is evaluation afterwards."""
    model = patched_model(arch, name).train()
    model.gradient_checkpointing_enable()
    text = torch.tensor(list(embedded_corpus()[:80].encode()))
    ids = (3 + text % 57).view(4, 20)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "positional_encoding" in n}
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        losses.append(loss.item())
        found = {n: p.grad for n, p in model.named_parameters() if not (ENCODINGS[name].has("normalise") and n.endswith("sinks"))}
        assert not [n for n, grad in found.items() if grad is None or not grad.isfinite().all()]
        optimizer.step()
    assert losses[-1] < 0.97 * losses[0]
    assert not [n for n, p in model.named_parameters() if n in before and torch.equal(p, before[n])]
    model.eval()
    with torch.no_grad():
        assert_close(in_pieces(model, ids, [13, 1, 1, 5]), model(ids, use_cache=False).logits, **CLOSE)


@once_each
@torch.no_grad()
def test_checkpoint_loads_again(arch, name, batch, tmp_path):
    model = patched_model(arch, name)
    for parameter in patch_of(model).placements[0].encoding.parameters():
        parameter.add_(0.1)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    # A stock checkpoint is a stock model, which wants to be told positions under left padding.
    batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert again.config.model_type == model.config.model_type == arch
    assert type(again) is type(model)
    assert hf_posenc.inspect(again).fingerprint == hf_posenc.inspect(model).fingerprint
    assert again.config.max_position_embeddings == model.config.max_position_embeddings


@once_each
@torch.no_grad()
def test_generation_needs_no_cache(arch, name, batch):
    """With beams, for which the cache is reordered."""
    model, settings = patched_model(arch, name), {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": 3}
    assert torch.equal(model.generate(**batch, **settings), model.generate(**batch, use_cache=False, **settings))


@once_each
@torch.no_grad()
def test_static_cache_changes_nothing(arch, name, batch):
    model, (ids, mask) = patched_model(arch, name), batch.values()
    full = model(**batch).logits
    cache = StaticCache(config=model.config, max_cache_len=23)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    parts = []
    for start, end in ((0, 12), (12, 16), (16, 17)):
        out = model(
            ids[:, start:end], attention_mask=mask[:, :end], position_ids=positions[:, start:end], past_key_values=cache, use_cache=True
        )
        parts.append(out.logits)
    assert_close(torch.cat(parts, 1)[mask.bool()], full[mask.bool()], **CLOSE)


@once_each
@torch.no_grad()
def test_half_precision_stays_close(arch, name, batch):
    model, keep = patched_model(arch, name), batch["attention_mask"].bool()
    full = model(**batch).logits[keep]
    half = model.to(torch.bfloat16)(**batch).logits[keep].float()
    stock = tiny_model(arch)
    ids = batch["input_ids"][1:, -NATIVE:]
    noise = (stock(ids).logits - stock.to(torch.bfloat16)(ids).logits.float()).std()
    assert (half - full).std() < 4 * noise + 0.01


# Each is a new process: one now, the others with the slow tests.
@pytest.mark.parametrize("arch", [pytest.param(arch, marks=[pytest.mark.slow] * (at > 0)) for at, arch in enumerate(FAMILIES)])
def test_loading_without_the_package_fails_loudly(arch, tmp_path):
    foreign = next(n for n in hf_posenc.list_encodings() if not hf_posenc.inspect(patched_model(arch, n)).stock_checkpoint)
    model = patched_model(arch, foreign)
    model.save_pretrained(tmp_path)
    code = f"""
import transformers
for cls in (transformers.AutoModelForCausalLM, transformers.{type(model).__name__}):
    try:
        cls.from_pretrained({str(tmp_path)!r})
    except Exception as error:
        print("refused:", "hf_posenc" in str(error) or "element of type str" in str(error))  # the notice, where a number is wanted
    else:
        print("loaded")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.split("\n")[:2] == ["refused: True", "refused: True"], run.stdout + run.stderr
