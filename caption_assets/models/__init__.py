"""The models by key, and their weights: verify, mirror, cache."""
