"""Sandboxed worker processes, in which clips are probed and decoded."""
