"""The fine-tuning recipe: a Hugging Face model with another positional encoding, trained with `Trainer`."""

from .arguments import Settings, encoding_options, parse, parse_layers
from .run import main, run

__all__ = ["Settings", "encoding_options", "main", "parse", "parse_layers", "run"]
