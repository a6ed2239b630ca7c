"""A project folder of a user's own, for ``caption-assets init``."""
