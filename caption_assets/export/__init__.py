"""The training dataset: captions and videos in the formats that trainers load, written shard by shard."""
