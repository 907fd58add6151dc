"""Several processes train one model: ranks, collectives, sharding, failure."""
