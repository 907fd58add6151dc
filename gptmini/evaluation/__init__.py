"""How well a model predicts text: losses, baselines to beat, and memorization."""
