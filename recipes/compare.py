"""Train short, test long: the same small model with several positional encodings.

    python recipes/compare.py

trains a byte-level GPT-2 of 2 layers for 350 steps at 128 bytes of the embedded English text with each encoding, tests it on held-out
text at 128, 256, 512 and 1,024 bytes, prints the perplexities, and leaves one JSON per run, compare.csv and compare.png in runs/compare.

    python recipes/compare.py --model_type llama --encodings rope alibi kerple --steps 1000 --text book.txt
    python recipes/compare.py settings.yaml

A second call takes the runs that are there already; --overwrite trains them again.
"""

import sys

from hf_posenc.comparison import main

if __name__ == "__main__":
    sys.exit(main())
