"""The root of the project's own errors."""

from __future__ import annotations


class CaptionAssetsError(Exception):
    """An error that a person can mend: its message names what is wrong, the value and the remedy, and no secret."""
