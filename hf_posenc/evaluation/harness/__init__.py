"""Tasks of lm-eval (EleutherAI's evaluation harness) for several positional encodings of one model."""
