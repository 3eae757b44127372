"""Fine-tune a Hugging Face model with another positional encoding.

    python recipes/finetune.py --model demo --encoding linear --factor 2 --block-size 1024 --max-steps 20 --eval-lengths 1024 4096
    python recipes/finetune.py --preset pi-1000 --model MODEL --dataset DATASET --output-dir runs/pi

A preset is a published recipe, with its source and what is ours (recipes/configs/finetune): pi-1000, yarn-400, longlora, pose, drope,
long-abf, easycontext-64k and -512k, prolong-64k and -512k, grow-length, anneal-theta, learned-to-rope, to-alibi. Flags after it
override it. Position interpolation by 4, shortened:

    python recipes/finetune.py --preset pi-1000 --model demo --target-length 32768 --block-size 512 --max-steps 40 --warmup-steps 4 \\
        --per-device-train-batch-size 1 --gradient-accumulation-steps 1 --activation-checkpointing false \\
        --eval-tokens 4096 --eval-lengths 1024 --save-strategy no

brings the nats at 1,024 tokens from 4.17 to 3.07 (SmolLM2-135M-Instruct on the text built into Python 3.11; some minutes on two CPU cores).

Before the first step it prints what is live in the model, what of it is trained, for what context, with how many processes, and an estimate
of time and memory from one real micro-batch: --estimate-only true stops there. After the last it loads the result in a new process and
compares encoding and logits. Everything of transformers' TrainingArguments is a flag too: --learning-rate, --bf16, --report-to,
--activation-checkpointing, --eval-strategy steps --eval-steps 100 --metric-for-best-model nll@4096 --load-best-model-at-end.

    --position-scheme pose --position-target 16384   PoSE: train on short rows for a long context
    --anneal factor=1:16 --anneal-shape geometric    an option of the encoding that changes with the steps
    --option-schedule theta 0=1000000 100=5000000    the same in stages
    --length-schedule 0=1024 200=4096                short rows first
    --mix books.jsonl@0.5 code.jsonl@0.5             several sources, by their shares of the blocks
    --replay web.jsonl --replay-share 0.4            short texts beside the long ones
    --boundaries cross                               blocks run across documents, which otherwise do not see each other
    --loss longce:short=1024,stride=256              LongCE: what a long context helps to predict counts more
    --eval-tasks niah_single_1 vt                    retrieval tasks, scored while the model trains
    --loss-chunk 0                                   all logits at once, as in stock transformers
    --lora-rank 8                                    LoRA through PEFT, and the parameters of the encoding itself in full. The adapter
                                                     carries the encoding: PEFT loads it on the stock base after `import hf_posenc`.

A run that was interrupted, or killed, goes on from its last whole checkpoint when it is started again, and ends with the same weights.
`torchrun --nproc_per_node 8 recipes/finetune.py --expect-processes 8 ...` trains on several devices; recipes/configs/accelerate has
untested settings for FSDP2 and DeepSpeed.

The saved model loads with AutoModelForCausalLM after `import hf_posenc`.
"""

import sys

from hf_posenc.finetuning import main

if __name__ == "__main__":
    sys.exit(main())
