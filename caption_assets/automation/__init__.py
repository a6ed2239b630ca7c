"""What happens by itself: shards are registered, missing captions requested, trouble told of."""
