import pytest
import torch
from drawing import chi_squared
from tiny import save_tiny, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_posenc.training import create_scheme
from hf_posenc.training.schemes import Document

THEIRS = {
    "653+49+8=017": (False, True, [4, 3, 2, 1, 3, 2, 1, 2, 1, 2, 3, 4]),
    "356+94+8=017": (True, True, [2, 3, 4, 1, 2, 3, 1, 2, 1, 2, 3, 4]),
    "653+49+8=710": (False, False, [4, 3, 2, 1, 3, 2, 1, 2, 1, 4, 3, 2]),
    "653+49=207": (False, True, [4, 3, 2, 1, 3, 2, 1, 2, 3, 4]),
    "653*49=31997": (False, True, [4, 3, 2, 1, 3, 2, 1, 2, 3, 4, 5, 6]),
}
"""Texts, how operands and answer are written, and positions from the authors' code (HanseulJo/position-coupling), not randomised."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


def coupling(folder, **more):
    scheme = create_scheme("position_coupling", max_position=8, **more)
    return scheme.prepare(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


def tokens(folder, text):
    return torch.tensor(AutoTokenizer.from_pretrained(folder)(text)["input_ids"])


@pytest.mark.parametrize("text", THEIRS)
def test_positions_are_those_of_the_authors_code(folder, text):
    operands, answer, positions = THEIRS[text]
    scheme, ids = coupling(folder, reversed_operands=operands, reversed_answer=answer), tokens(folder, text)
    assert scheme.positions(ids).tolist() == positions
    special = torch.cat((torch.tensor([0]), ids, torch.tensor([0])))  # <s> lies at 0, as theirs
    assert scheme.positions(special[None]).tolist() == [[0, *positions, 0]]


def test_the_start_is_uniform_below_what_the_longest_number_leaves(folder):
    """{1 ... 5} for 3 digits and a last position of 8, as in the authors' code."""
    scheme, document = coupling(folder), Document(tokens(folder, "653+49=207"), None)
    found = torch.stack([scheme.draw(document, scheme.generator(torch.tensor([n]))) for n in range(2000)])
    assert (found - found[:, 3:4] == found[0] - found[0, 3]).all()
    assert chi_squared(found[:, 3], dict.fromkeys(range(1, 6), 1)) < 18.5  # 4 degrees of freedom, p = 0.001
    with pytest.raises(ValueError, match="a number of 8 digits does not fit below position 8"):
        scheme.positions(tokens(folder, "12345678+1="))


@torch.no_grad()
def test_generate_goes_on_at_coupled_positions_where_the_answer_is_written_backwards(folder):
    scheme, model = coupling(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokens(folder, "653+49=")[None]
    seen = []
    model.get_decoder().register_forward_pre_hook(lambda module, args, given: seen.append(given["position_ids"]), with_kwargs=True)
    mask = torch.ones_like(prompt)
    model.generate(prompt, attention_mask=mask, position_ids=scheme.positions(prompt), max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert torch.cat(seen, 1).tolist() == [[4, 3, 2, 1, 3, 2, 1, 2, 3]]


def test_a_tokenizer_that_writes_several_digits_as_one_is_refused(folder):
    class Merging:
        """Knows 01 as one token."""

        all_special_ids = ()

        def __len__(self):
            return 12

        def batch_decode(self, rows):
            return [[*"0123456789", "=", "01"][row[0]] for row in rows]

        def __call__(self, text, add_special_tokens):
            return {"input_ids": [11, 2, 3, 4, 5, 6, 7, 8, 9]}

    with pytest.raises(ValueError, match="gives each digit a token of its own"):
        create_scheme("position_coupling", max_position=8).prepare(tiny_model("llama"), Merging())
