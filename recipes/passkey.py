"""Passkey retrieval: does a model find a number in its context, by length and depth, with several positional encodings.

The model is loaded once; each encoding is patched in, asked all prompts, and taken out again. Scores are teacher-forced, one pass a prompt.

    python recipes/passkey.py --model demo --encoding stock yarn --factor 2 --lengths 12288 --depths 0.25 0.75 --trials 1

(or --preset demo-12k) asks SmolLM2-135M-Instruct, trained at 8,192 tokens, for two numbers and prints (float32, CPU, minutes a prompt)

              12,288   tokens right   nats   peak GB
    stock        0/2            30%  13.49      1.40
    yarn         2/2           100%   0.32      1.40

It leaves one JSON and one heat map per encoding and passkey.csv in runs/passkey. A second call takes what is there already, and a run that
was interrupted goes on from the last finished prompt.

    --depths 5                   five depths from 0 to 1; or the depths themselves
    --needles 3 --ask all        several numbers with names, all of them asked for in turn; --ask one for one of them
    --distractors 4              other numbers in sentences of the same form
    --filler essay               English that every Python has, or a text file, in place of the usual sentences
    --chat                       the prompt in the tokenizer's chat template
    --generate                   also generate the answer greedily through the KV cache, and compare the digits

The task is one of recipes/retrieval.py, with flags of its own.

The same flags can stand in a YAML or JSON file, given as the first argument. `torchrun --nproc_per_node 8 recipes/passkey.py ...` shares
the prompts among processes. The same from Python:

    from hf_posenc.evaluation import passkey
    result = passkey(model, tokenizer, [4096, 8192], depths=5, trials=5)
"""

import sys

from hf_posenc.evaluation.retrieval.passkey_cli import main

if __name__ == "__main__":
    sys.exit(main())
