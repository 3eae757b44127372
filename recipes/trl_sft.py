"""Supervised fine-tuning with TRL: patch the model, then do what you always do.

    python recipes/trl_sft.py --encoding yarn --factor 2 --max-steps 20

trains the demo model (SmolLM2-135M-Instruct) on little sums, a minute on two CPU cores (loss 1.5 -> 0.4), loads it again and checks
that the positional encoding is the one that was trained. Every other flag is one of TRL's SFTConfig. Needs `pip install 'hf_posenc[trl]'`.
"""

import sys

from datasets import Dataset
from transformers import AutoModelForCausalLM

import hf_posenc
from hf_posenc.command import exit_status
from hf_posenc.evaluation.models import ModelArguments, load_tokenizer
from hf_posenc.extras import extra
from hf_posenc.flags import Foreign, parse
from hf_posenc.variants import EncodingArguments, name_of, patch_options

with extra("trl"):
    from trl import SFTConfig, SFTTrainer

DEFAULTS = {
    "output_dir": "runs/trl-sft",
    "max_steps": 20,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-4,
    "logging_steps": 5,
    "save_strategy": "no",
    "report_to": "none",
    "bf16": False,
}


def sums(count: int = 500) -> Dataset:
    """Prompts and completions; a column "messages" of conversations works as well where the tokenizer has a chat template."""
    pairs = [(i * 7 % 100, i * 13 % 100) for i in range(count)]
    return Dataset.from_list([{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a, b in pairs])


def run(argv: list[str] | None = None) -> None:
    """Patch, train, save, load again; ValueError where the encoding is not what it was."""
    kinds, of_trl = [ModelArguments, EncodingArguments, SFTConfig], Foreign("Training (of TRL's SFTConfig)", shown=tuple(DEFAULTS))
    defaults = {"encoding": ["yarn"], **DEFAULTS}
    asked, encodings, settings = parse(kinds, "recipes/trl_sft.py", argv, defaults, {SFTConfig: of_trl}, __doc__)
    ((encoding, options),) = encodings.plan().items()
    model = AutoModelForCausalLM.from_pretrained(asked.path, dtype="float32")
    hf_posenc.patch(model, name_of(encoding), **patch_options(options))
    print(hf_posenc.inspect(model))

    trainer = SFTTrainer(model, settings, train_dataset=sums(), processing_class=load_tokenizer(asked.path))
    trainer.train()
    trainer.save_model()

    again = AutoModelForCausalLM.from_pretrained(settings.output_dir)
    if hf_posenc.inspect(again).fingerprint != hf_posenc.inspect(trainer.model).fingerprint:
        raise ValueError(f"the model in {settings.output_dir} has another positional encoding than the one that was trained")
    print(f"saved in {settings.output_dir}; the same positional encoding is live in it")


if __name__ == "__main__":
    sys.exit(exit_status(run))
