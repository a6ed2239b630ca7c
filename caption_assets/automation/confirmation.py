"""The question before something is taken away: the number of what is taken, to be typed."""

from __future__ import annotations

import sys

from caption_assets.errors import CaptionAssetsError


class NotConfirmed(CaptionAssetsError):
    """A question that was answered with another number, or by nobody."""


def confirm(question: str, number: int, answer: int | None) -> None:
    """Ask for a number on the terminal, unless there is an answer already.

    Args:
        question: with the number that it asks for.
        number: the right answer.
        answer: given on the command line, as ``--yes``.

    Raises:
        NotConfirmed: if the answer is another, or if nobody can answer.
    """
    if answer is None:
        if not sys.stdin.isatty():
            raise NotConfirmed(f"nothing is changed: say --yes {number}")
        print(question, end="", flush=True)
        typed = sys.stdin.readline().strip()
        answer = int(typed) if typed.isdecimal() else None
    if answer != number:
        raise NotConfirmed(f"nothing is changed: the answer is not {number}")
