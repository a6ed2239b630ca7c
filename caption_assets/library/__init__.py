"""The Python API: what ``import caption_assets`` offers, and the command ``caption``."""
