"""SmolLM2-135M: packed documents and the loss in chunks, against its evaluation and its own loss."""

from itertools import pairwise

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, default_data_collator

from hf_posenc.evaluation import embedded_corpus, fetch_demo_model
from hf_posenc.evaluation.token_nll import find_head, token_nll
from hf_posenc.training import check_isolation, chunk_loss, full_loss, pack, separate_documents

pytestmark = pytest.mark.slow


def test_a_packed_block_has_the_nats_of_its_documents_and_the_gradient_of_the_stock_loss():
    """Two documents in two blocks, three pieces: each scored on its own by the evaluation."""
    path = fetch_demo_model()
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    text = embedded_corpus()
    blocks = pack(Dataset.from_dict({"text": [text[:300], text[5000:6500]]}), tokenizer, 96).select(range(2))
    batch = default_data_collator(list(blocks))
    assert (batch["position_ids"] == 0).sum() == 3
    separate_documents(model)
    check_isolation(model)
    losses, norms = [], []
    for chunked in (False, True):
        (chunk_loss if chunked else full_loss)(model, *([50] if chunked else []))
        model.zero_grad()
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.stack([p.grad.norm() for p in model.parameters()]))
    assert losses == pytest.approx(2 * [alone(model, batch)], rel=1e-4)
    torch.testing.assert_close(*norms, rtol=1e-3, atol=1e-5)


def alone(model, batch):
    """Mean nats of the pieces, in one pass each."""
    found = []
    for ids, positions in zip(batch["input_ids"], batch["position_ids"], strict=True):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
        pieces = (ids[start:end] for start, end in pairwise(starts))
        found += [token_nll(model, piece, find_head(model, piece)) for piece in pieces if len(piece) > 1]
    return torch.cat(found).mean().item()
