"""The one dimension of the per-shard assets."""

import dagster as dg

SHARDS_NAME = "shards"
SHARDS = dg.DynamicPartitionsDefinition(name=SHARDS_NAME)
"""One key for each dataset shard; ``shard_index`` registers them."""
