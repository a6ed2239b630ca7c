"""The one dimension of the per-shard assets."""

import dagster as dg

SHARDS = dg.DynamicPartitionsDefinition(name="shards")
"""One key for each dataset shard; ``shard_index`` registers them."""
