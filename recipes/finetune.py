"""Fine-tune a Hugging Face model with another positional encoding.

    python recipes/finetune.py --model demo --encoding linear --factor 2 --block-size 1024 --max-steps 20 --eval-lengths 1024 4096
    python recipes/finetune.py --preset pi-1000 --model MODEL --dataset DATASET --output-dir runs/pi

Everything of transformers' TrainingArguments is a flag too: --learning-rate, --bf16, --activation-checkpointing, --report-to,
--eval-strategy steps --eval-steps 100, --metric-for-best-model nll@4096 --load-best-model-at-end. Flags can stand in one YAML or JSON file,
given first; flags after it override it.

A run that was interrupted goes on from its last checkpoint when it is started again. `torchrun --nproc_per_node 8 recipes/finetune.py ...`
trains on several devices.

    --lora-rank 8      trains LoRA adapters through PEFT, and the parameters of the encoding itself in full. An adapter does not carry the
                       encoding: the merged model is saved beside it, in OUTPUT_DIR/merged. To load the adapter, patch its base first.

The saved model loads with AutoModelForCausalLM after `import hf_posenc`; the recipe does that and compares the logits.
"""

import sys

from hf_posenc.finetuning import main

if __name__ == "__main__":
    sys.exit(main())
