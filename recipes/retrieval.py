"""Does a model use its context? RULER's generated tasks and others, by length, with several positional encodings side by side.

The model is loaded once; each encoding is patched in, asked all questions of all tasks, and taken out again. By default scores are
teacher-forced, one pass a prompt.

    python recipes/retrieval.py --model demo --encoding stock yarn --factor 2 --tasks niah_single_1 niah_multikey_1 vt --lengths 4096 12288

It prints the score of each task at each length, between two controls: the same questions with hardly more context than they need (oracle),
and with the context of other questions (chance), so that a zero can be told from a broken harness; and the effective length, up to which
the score keeps 85 % of that at the shortest. It leaves one JSON per encoding and task, retrieval.csv, retrieval.json and a heat map of each
encoding in runs/retrieval. A second call takes what is there already, and a run that was interrupted goes on from the last finished prompt.

    --tasks ruler                all tasks of a benchmark; `--tasks list` prints them
    --generate                   the published form: the answer generated greedily and scored by the rule of the task's authors
    --threshold 0.856 --absolute RULER's effective length
    --depths 5                   five depths of the needle, for tasks that have one, with a heat map of each
    --text FILE                  what needles are hidden in, in place of the English that every Python has
    --chat                       the prompt in the tokenizer's chat template

The same flags can stand in a YAML or JSON file, given as the first argument. `torchrun --nproc_per_node 8 recipes/retrieval.py ...` shares
the prompts among processes. The same from Python:

    from hf_posenc.evaluation import retrieval
    result = retrieval(model, tokenizer, "niah_multikey_1", [4096, 8192], trials=5)
"""

import sys

from hf_posenc.evaluation.retrieval.cli import main

if __name__ == "__main__":
    sys.exit(main())
