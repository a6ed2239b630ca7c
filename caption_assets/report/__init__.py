"""What people look at: the gallery of a shard, and the comparison of two."""
