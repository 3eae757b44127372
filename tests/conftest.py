import pytest
import torch


@pytest.fixture
def batch():
    """Two rows of odd length, the first padded on the left."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 60, (2, 17), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}
