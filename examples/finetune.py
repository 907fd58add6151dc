"""Fine-tune GPT-2, or a checkpoint of yours, on another text, and compare the loss before and after.

python examples/finetune.py openai-community/gpt2 my_text.txt
"""

import sys
from pathlib import Path

import gptmini


def main(
    weights: str, text: str, out_dir: str = "runs/finetuned", max_steps: int = 200
) -> tuple[float, float]:
    """Fine-tune `weights`, a folder or Hub name, on the file `text`; returns the losses before and after."""
    content = Path(text).read_text(encoding="utf-8")
    held_out = content[-len(content) // 10 :]  # the end, which train keeps for validation too

    model, tokenizer = gptmini.load(weights)
    before = gptmini.evaluate(model, tokenizer, held_out)

    result = gptmini.train(
        {
            "model": {**model.config.model_dump(exclude={"vocab_size"}), "dropout": 0.1},  # same shape
            "data": {"corpus": text},
            "optim": {"lr": 5e-5, "weight_decay": 0.01, "warmup_steps": 20, "schedule": "linear"},
            "train": {
                "init_from": weights,  # brings its tokenizer
                "out_dir": out_dir,
                "max_steps": max_steps,
                "batch_size": 16,
                "micro_batch_size": 4,
                "eval_interval": 50,
                "early_stop_patience": 3,  # a large model memorizes a small text soon
            },
        }
    )
    model, tokenizer = gptmini.load(result.run_dir)
    after = gptmini.evaluate(model, tokenizer, held_out)
    print(f"held-out bits per byte: {before.bits_per_byte:.3f} before, {after.bits_per_byte:.3f} after")
    return before.loss, after.loss


if __name__ == "__main__":
    main(*sys.argv[1:4])
