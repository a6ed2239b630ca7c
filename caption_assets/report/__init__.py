"""Reports: the gallery of a shard, and the comparison of a shard in two roots."""
