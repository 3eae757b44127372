import torch
from drawing import chi_squared, draws
from tiny import tiny_model

import hf_posenc
from hf_posenc.training import create_scheme


def test_all_tokens_are_moved_by_one_offset_and_each_is_as_likely():
    """As the authors' code draws it: below K, K - 1 at most."""
    found = draws(create_scheme("shape", max_offset=7), 4, 3000)
    assert (found.diff() == 1).all()
    assert chi_squared(found[:, 0], dict.fromkeys(range(7), 1)) < 22.5  # 6 degrees of freedom, p = 0.001


@torch.no_grad()
def test_offset_k_at_which_the_authors_evaluate_is_not_where_a_model_is_used():
    """Pitfall: their numbers are those of positions from K on, past all that training shows; a model here begins at 0, which it shows."""
    scheme, ids = create_scheme("shape", max_offset=30), torch.arange(3, 9)[None]
    assert draws(scheme, 6, 500)[:, 0].aminmax() == (0, 29)
    model = hf_posenc.patch(tiny_model("llama", max_position_embeddings=64), "sinusoidal")
    used, theirs = model(ids).logits, model(ids, position_ids=30 + torch.arange(6)[None], attention_mask=torch.ones_like(ids)).logits
    assert torch.equal(used, model(ids, position_ids=torch.arange(6)[None], attention_mask=torch.ones_like(ids)).logits)
    assert (used - theirs).abs().max() > 1e-2
