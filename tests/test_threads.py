"""One patched model used from several threads at once: nothing that belongs to one call lives on a module."""

import sys
import threading

import pytest
import torch
from tiny import options_for, tiny_for
from transformers import DynamicCache

import hf_posenc

ROUNDS = 12


@pytest.fixture(autouse=True)
def many_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(*jobs):
    """Run all jobs, each in a thread of its own, and raise what they raise."""
    errors, gate = [], threading.Barrier(len(jobs))

    def run(job):
        try:
            gate.wait()
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.cover("encoding_kind", "arch", arch=["llama", "gpt2"])
def test_with_and_without_a_cache_at_once(arch, name):
    """Each thread has its own text, length and positions; the logits are those of a single thread."""
    torch.manual_seed(3)
    model = hf_posenc.patch(tiny_for(name, arch), name, layers="all", **options_for(name))
    texts = [torch.randint(3, 60, (1, n)) for n in (20, 13)]
    padded = torch.cat((torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 16, dtype=torch.long)), 1)

    @torch.no_grad()
    def whole():
        return model(texts[0], use_cache=False).logits

    @torch.no_grad()
    def left_padded():
        return model(texts[0], attention_mask=padded, use_cache=False).logits

    @torch.no_grad()
    def decoded():
        cache, parts = DynamicCache(config=model.config), []
        for start, end in ((0, 9), (9, 10), (10, 11), (11, 13)):
            parts.append(model(texts[1][:, start:end], past_key_values=cache, use_cache=True).logits)
        return torch.cat(parts, 1)

    def again(compute, expected):
        def job():
            for _ in range(ROUNDS):
                assert torch.equal(compute(), expected), f"{compute.__name__} gives other logits beside another thread"

        return job

    together(*(again(compute, compute()) for compute in (whole, decoded, left_padded)))
