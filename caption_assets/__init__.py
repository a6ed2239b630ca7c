"""Captions video at scale, as Dagster assets: shards of clips in, Parquet tables of captions out."""

__version__ = "0.1.0"
