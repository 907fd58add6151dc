"""Change how the next token is chosen: a logits hook that writes without the letter e.

python examples/custom_sampler.py runs/python_docs "A string of "
"""

import math
import sys
from collections.abc import Sequence

from torch import Tensor

import gptmini


def main(checkpoint: str, prompt: str, max_new_tokens: int = 200) -> str:
    """Print and return a text without any new e, a lipogram."""
    model, tokenizer = gptmini.load(checkpoint)
    has_e = [i for i, token in enumerate(tokenizer.tokens) if b"e" in token.lower()]

    def without_e(logits: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
        """Called before each new token with logits (B, V), and the ids of each of the B texts so far."""
        logits[:, has_e] = -math.inf  # probability 0: banned. Adding a number instead makes tokens likelier
        return logits

    (text,) = gptmini.generate_text(
        model, tokenizer, prompt, max_new_tokens=max_new_tokens, top_p=0.9, seed=1, logits_hook=without_e
    )
    print(text)
    return text


if __name__ == "__main__":
    main(*sys.argv[1:3])
