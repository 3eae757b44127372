"""Compare a saved model with the one that was trained, in a process that knows only the folder.

    python -m hf_posenc.finetuning.reload FOLDER EXPECTED

The exit status is 1 where the encoding or the logits are others than EXPECTED says, a file that `verify.expect` wrote.
"""

from __future__ import annotations

import sys

import torch

import hf_posenc

from ..command import exit_status
from ..evaluation.models import read_model
from .verify import logits


def compare(folder: str, file: str) -> None:
    """Load a model, and say how far it is from what is expected.

    Raises:
        ValueError: too far.
    """
    expected = torch.load(file, weights_only=True)
    how = {"dtype": expected["dtype"], "attn_implementation": expected["attention"]}
    model = read_model(folder, **how).to(expected["device"])
    found, wanted = hf_posenc.inspect(model).fingerprint, expected["fingerprint"]
    difference = (logits(model, expected["ids"]) - expected["logits"]).abs().max().item()
    scale = expected["logits"].abs().max().item()
    print(f"saved in {folder}; loaded again in a new process: logits differ by {difference:.1e} at most (largest logit {scale:.1f})")
    if found != wanted:
        raise ValueError(f"the positional encoding in {folder} is not the one that was trained: fingerprint {found}, was {wanted}")
    # A NaN is not below any bound.
    if not difference <= scale * (1e-3 if expected["dtype"] == torch.float32 else 5e-2):
        raise ValueError(f"the model in {folder} is not the one that was trained: its logits differ")


if __name__ == "__main__":
    sys.exit(exit_status(lambda: compare(*sys.argv[1:])))
