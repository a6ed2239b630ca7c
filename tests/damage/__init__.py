"""Damage to stored state, made without the project's own code: bytes, pyarrow, pandas and the file system."""
