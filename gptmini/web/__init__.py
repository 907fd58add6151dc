"""A page in the browser on which a person plays with a model, and the server that computes for it."""
