"""Sandboxed worker processes that probe and decode clips."""
