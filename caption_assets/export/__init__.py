"""Captions made ready for training: a dataset that ``datasets`` and ``webdataset`` load, written shard by shard."""
