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

The same flags can stand in a YAML or JSON file, given as the only argument. The same from Python:

    from hf_posenc.evaluation import perplexity
    result = perplexity(model, text, lengths=[1024, 4096], tokenizer=tokenizer)
"""

import sys

from hf_posenc.evaluation.cli import main

if __name__ == "__main__":
    sys.exit(main())
