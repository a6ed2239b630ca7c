"""Helpers of the project commands: opening the Dagster instance, and confirming a change."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from caption_assets.errors import CaptionAssetsError


class NotConfirmed(CaptionAssetsError):
    """A change that was not confirmed."""


class InstanceError(CaptionAssetsError):
    """A Dagster instance that cannot be opened."""


@contextmanager
def open_instance() -> Iterator[dg.DagsterInstance]:
    """The Dagster instance of DAGSTER_HOME.

    Raises:
        InstanceError: if DAGSTER_HOME is not set, or not a folder.
    """
    home = os.environ.get("DAGSTER_HOME", "")
    if not home:
        raise InstanceError(
            f"DAGSTER_HOME is not set, and {os.getcwd()} has no .env that sets it: run the command in a project folder "
            "(`caption-assets init DIR` makes one), or set DAGSTER_HOME to the folder of your Dagster instance"
        )
    if not Path(home).is_absolute() or not Path(home).is_dir():
        raise InstanceError(
            f"DAGSTER_HOME={home!r} is not the absolute path of a folder: set it to the folder of your Dagster instance"
        )
    # It would log the traceback of a Ctrl-C that arrives while a connection is closed, and raises it in any case.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    with dg.DagsterInstance.get() as instance:
        yield instance


def confirm(question: str, number: int, answer: int | None) -> None:
    """Ask on the terminal for the number of affected items, unless the command line gives it.

    Args:
        question: the question, which contains the number.
        number: the expected answer.
        answer: value of ``--yes``.

    Raises:
        NotConfirmed: if the answer differs, or if there is no terminal.
    """
    if answer is None:
        if not sys.stdin.isatty():
            raise NotConfirmed(f"nothing was changed: no terminal to confirm on; to confirm, add --yes {number}")
        print(question, end="", flush=True)
        typed = sys.stdin.readline().strip()
        answer = int(typed) if typed.isdecimal() else None
    if answer != number:
        raise NotConfirmed(f"nothing was changed: the answer must be {number}")
