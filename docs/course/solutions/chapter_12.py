"""Solutions of chapter 12."""


def to_gpt2(state):
    """12.1: a state dict with GPT-2's (in, out) for the Linear layers of the blocks."""
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    return {name: value.T if name.endswith(linear) else value for name, value in state.items()}
