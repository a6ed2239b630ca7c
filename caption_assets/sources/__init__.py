"""Shards and their clips: layouts, listing, keys and manifest."""
