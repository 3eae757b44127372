"""Perplexity against context length for several positional encodings of one model.

The model is loaded once; each encoding is patched in, measured in one forward pass at the longest length, and taken out again.

    python recipes/perplexity.py --model demo --encoding stock linear dynamic_ntk yarn --factor 2 --lengths 1024 4096 8192 16384

prints (SmolLM2-135M-Instruct, float32, the first 16,384 tokens of the text built into Python 3.11; about ten minutes on two CPU cores)

                  1,024   4,096   8,192  16,384
    stock         12.74   10.83   10.27   27.92
    linear        31.17   32.12   30.57   30.91
    dynamic_ntk   12.74   10.83   10.27   10.10
    yarn          13.05   11.07   10.60   10.12

and leaves one JSON per encoding, perplexity.csv and perplexity.png in runs/perplexity. A second call takes what is there already.

Your own model and text:

    python recipes/perplexity.py --model MODEL --dataset DATASET --split test --documents 10 --encoding stock yarn --factor 4 \\
        --lengths 8192 32768 --dtype bfloat16
    python recipes/perplexity.py --model MODEL --text book.txt --encoding stock rerope --option window=1024

Other questions, other protocols (`hf-posenc perplexity --help`; hf_posenc/evaluation/perplexity/protocols.py says what each scores):

    --protocol sliding --stride 512 --lengths 4096          every token once, with at least 3,584 tokens before it
    --protocol fixed_target --target 256                    the same last tokens, given ever more context: does it help?
    --protocol decoded                                      through the KV cache, token by token, as generation sees it
    --protocol disjoint --bos always                        the numbers of lm-eval's rolling perplexity
    --protocol offset --lengths 256 8192 65536              one passage, placed ever further out
    --evaluator MODEL                                       LongPPL: perplexity of the tokens that a long context helps that to predict

`torchrun --nproc_per_node N recipes/perplexity.py ...` shares the documents among N processes and gives the numbers of one. A run that was
killed goes on from the documents it had finished; Ctrl-C leaves the result of those. The same flags can stand in a YAML or JSON file,
given first. The same from Python:

    import hf_posenc
    result = hf_posenc.perplexity(model, tokenizer, texts, lengths=[4096, 16384], encodings={"stock": {}, "yarn": {"factor": 2.0}})
"""

import sys

from hf_posenc.evaluation.perplexity.cli import main

if __name__ == "__main__":
    sys.exit(main())
