"""Captions video at scale, as Dagster assets: shards of clips in, Parquet tables of captions out."""
