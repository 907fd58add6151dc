"""Run folders -> one HTML page: curves, samples, token losses, config."""
