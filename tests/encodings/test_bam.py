import dataclasses

import pytest
import torch

from hf_posenc.encodings import create

AUTHORS = [  # AttentionPrior of ArthurSBianchessi/BAM (models/bam.py): what each head adds to keys 0 .. 5 of query 5
    [-8.226042e-01, -7.357598e-01, -6.371870e-01, -5.202614e-01, -3.678813e-01, -1.163337e-03],
    [-3.937556e00, -2.716153e00, -1.494750e00, -2.733475e-01, -9.480797e-01, -2.169482e00],
    [-1.129437e00, -8.407351e-01, -5.880541e-01, -3.737631e-01, -2.011123e-01, -7.507734e-02],
    [-2.139955e00, -1.291483e00, -3.673985e-01, -6.985990e-01, -1.587633e00, -2.421314e00],
]


def test_equals_the_authors_code(geometry):
    bam = create("bam", geometry, location=True)
    bam.shape.data, bam.log_scale.data = torch.tensor([0.5, 1.0, 1.7, 0.9]), torch.tensor([-1.0, 0.2, -3.0, 0.0])
    bam.location.data = torch.tensor([0.0, -0.8, 0.6, -1.1])
    bias = bam.bias_matrix(torch.tensor([[5]]), torch.arange(6)[None])
    torch.testing.assert_close(bias[0, :, 0], torch.tensor(AUTHORS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("location", [False, True])
def test_starts_from_the_slopes_of_the_model(geometry, location):
    own, pos = dataclasses.replace(geometry, slopes=(0.5, 0.3, 0.2, 0.1)), torch.arange(50)[None]
    bam = create("bam", own, location=location)
    torch.testing.assert_close(bam.bias_matrix(pos, pos), create("alibi", own).bias_matrix(pos, pos), rtol=1e-5, atol=1e-5)


def test_every_parameter_learns_at_distance_zero_too(geometry):
    bam, pos = create("bam", geometry, location=True), torch.arange(6)[None]
    bam.bias_matrix(pos, pos).tril().sum().backward()
    assert all(p.grad.isfinite().all() and (p.grad != 0).all() for p in bam.parameters())
    assert len(list(create("bam", geometry).parameters())) == 2


def test_bad_options(geometry):
    with pytest.raises(ValueError, match="location is True or False"):
        create("bam", geometry, location=0.0)
