"""What fine-tuning with another positional encoding achieves: the demo model, and a byte-level one trained here."""

import pytest
import torch
from tiny import save_tiny
from transformers import AutoConfig, AutoModelForCausalLM

from hf_posenc import finetuning
from hf_posenc.finetuning.run import finish, prepare, train

pytestmark = pytest.mark.slow
WINDOW = 64


def fit(argv):
    """Train, save and load again; the last nats at each length, and those of the start."""
    prepared = prepare(finetuning.parse(argv))
    train(*prepared)
    assert finish(*prepared) == 0
    start = next((entry for entry in prepared[1].state.log_history if "eval_nll" in " ".join(entry)), {})
    return prepared[2].last, start


def test_sixteen_steps_at_512_teach_the_demo_model_interpolated_positions(tmp_path):
    """Interpolation by 4 leaves 4.17 nats at 1,024 tokens; 16 steps at half that length bring 3.45, 40 steps 3.07."""
    torch.set_num_threads(2)
    shorter = ["--target_length", "32768", "--block_size", "512", "--max_steps", "16", "--warmup_steps", "2", "--eval_lengths", "1024"]
    smaller = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1", "--activation_checkpointing", "false"]
    rest = ["--eval_tokens", "4096", "--save_strategy", "no", "--report", "false", "--output_dir", str(tmp_path)]
    end, start = fit(["--preset", "pi-1000", "--model", "demo", *shorter, *smaller, *rest])
    assert start["eval_nll@1024"] > 4.0
    assert end["eval_nll@1024"] < 3.7


@pytest.fixture(scope="module")
def short_model(tmp_path_factory):
    """A byte-level Llama layout with RoPE, trained from scratch on rows of 64 bytes."""
    folder = save_tiny(tmp_path_factory.mktemp("untrained"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4}
    tokens = {"vocab_size": 257, "bos_token_id": 0, "eos_token_id": 0}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", max_position_embeddings=WINDOW, **sizes, **tokens)).save_pretrained(
        folder
    )
    return bytes_run(folder, tmp_path_factory.mktemp("trained"), "--max_steps", "300", "--learning_rate", "3e-3")[0]


def bytes_run(model, folder, *more):
    """A run of the recipe on rows of 64 bytes: where the model is, and its nats at each length."""
    shared = ["--block_size", str(WINDOW), "--per_device_train_batch_size", "16", "--eval_tokens", "8192", "--eval_lengths", "64", "256"]
    quiet = [
        "--save_strategy",
        "no",
        "--report",
        "false",
        "--eval_on_start",
        "false",
        "--warmup_steps",
        "10",
        "--lr_scheduler_type",
        "cosine",
    ]
    return folder, fit(["--model", str(model), "--output_dir", str(folder), *shared, *quiet, *more])[0]


def test_skipped_positions_reach_lengths_that_were_never_trained(short_model, tmp_path):
    """RoPE as it is, 60 steps at 64 bytes: 2.11 nats at 256 without PoSE, 1.93 with it; 1.87 and 1.89 at 64."""
    more = ["--max_steps", "60", "--learning_rate", "1e-3"]
    _, plain = bytes_run(short_model, tmp_path / "plain", *more)
    _, pose = bytes_run(short_model, tmp_path / "pose", *more, "--position_scheme", "pose", "--position_target", "256")
    assert pose["eval_nll@256"] < plain["eval_nll@256"] - 0.1
    assert abs(pose["eval_nll@64"] - plain["eval_nll@64"]) < 0.06
