"""Solutions of chapter 8."""

import math


def gpt_parameters(V, n_layer, C, context_length):
    """8.1: a block has 12 C^2 + 13 C; the output layer is the token embedding."""
    return V * C + context_length * C + n_layer * (12 * C * C + 13 * C) + 2 * C


def loss_of_lead(a, V):
    """8.2: the probabilities are exp(a) / (exp(a) + V - 1) and 1 / (exp(a) + V - 1)."""
    log_sum = math.log(math.exp(a) + V - 1)
    return log_sum - a, log_sum
