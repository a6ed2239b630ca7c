"""Scripts of the Makefile: set-up, demo, lock files, licenses, docs."""
