"""A shard's clips and their frames: list, probe, cut into windows, sample, decode."""
