"""The training dataset: captions in files that ``datasets`` and ``webdataset`` load, written shard by shard."""
