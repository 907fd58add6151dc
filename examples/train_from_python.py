"""Train on a text of yours from Python, look at the result, and generate from it.

python examples/train_from_python.py my_text.txt
"""

import sys

import gptmini


def main(corpus: str, out_dir: str = "runs/from_python", max_steps: int = 500) -> None:
    """Train a small character model on `corpus`, a file, folder or glob, into the new folder `out_dir`."""
    result = gptmini.train(
        {
            "model": {"n_layer": 2, "n_head": 2, "n_embd": 128, "context_length": 64},
            "data": {"corpus": corpus},
            "tokenizer": {"kind": "chars"},
            "optim": {"optimizer": "muon", "lr": 0.03, "warmup_steps": 5, "schedule": "linear"},
            "train": {"out_dir": out_dir, "max_steps": max_steps, "eval_interval": 100},
        }
    )
    print(f"best validation loss {result.best_val_loss:.4f} nats per token, at step {result.best_step}")

    model, tokenizer = gptmini.load(result.run_dir)  # the best checkpoint
    for piece in gptmini.stream(model, tokenizer, "", max_new_tokens=200, temperature=0.8, seed=1):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:3])
