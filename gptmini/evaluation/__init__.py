"""Weights -> figures: how good a model is, and by what measure."""
