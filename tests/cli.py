"""The command line, run in the test's process."""

from __future__ import annotations

import sys

import pytest

from caption_assets.cli import main


def run_cli(*arguments: str) -> str | None:
    """Run ``caption-assets`` with arguments; returns its error message, None if it succeeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["caption-assets", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
    return str(end.value.code) if end.value.code else None
