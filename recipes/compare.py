"""The controlled study: same start, same data in the same order, many positional encodings, several seeds.

    python recipes/compare.py

trains a byte-level GPT-2 of 2 layers for 350 steps at 128 bytes of the embedded English text with each encoding, tests it on held-out
text at 128, 256, 512 and 1,024 bytes, prints the perplexities, and leaves in runs/compare one JSON per run, compare.csv (a line per run),
summary.csv (mean and standard deviation over seeds), compare.png, and report.html, one file with everything in it.

    perplexity per byte    128      256      512    1,024
    learned              11.23        -        -        -
    sinusoidal           11.65    12.06    12.50    12.67
    rope                  5.19     5.55     6.76     8.71
    nope                 11.46    11.76    12.10    12.32
    alibi                 7.12     7.07     7.05     7.04
    t5                   10.01    10.58    11.37    12.05
    kerple                6.22     6.19     6.20     6.23

(Python 3.11; the text differs a little between versions of Python. So short a training favours what attends nearby from the first step.)

    python recipes/compare.py --seeds 0 1 2 --model_type llama --encoding rope alibi kerple kerple:kernel=power --text book.txt
    python recipes/compare.py --model demo --encoding stock yarn:factor=4 alibi --train_length 512 --steps 40 --batch_size 4
    python recipes/compare.py --preset paper-small --dry_run true
    python recipes/compare.py settings.yaml

With --model, every run fine-tunes that model, with its tokenizer, and lengths are tokens. The presets are `paper-small`, the study for a
night, and `smollm2`, a pretrained base. --dry_run lists the runs with those that are done.

A second call takes the runs that are there already, and goes on in the middle of one that died (--save_seconds); --overwrite trains them
again. A run that fails is reported and does not stop the others; the exit status is 1 then.
"""

import sys

from hf_posenc.comparison import main

if __name__ == "__main__":
    sys.exit(main())
