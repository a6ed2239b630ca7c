"""The root of the project's own errors, and the form of all others."""

from __future__ import annotations

from traceback import TracebackException

SHOWN_CHARACTERS = 500
"""Characters of an unforeseen error's message that are shown: some libraries repeat the data they failed on."""


class CaptionAssetsError(Exception):
    """An error that a person can mend: its message names what is wrong, the value and the remedy, and no secret."""


class UnexpectedError(CaptionAssetsError):
    """An error that nobody foresaw, which is its ``__cause__``."""

    @property
    def traceback(self) -> str:
        """That of the cause. Errors behind it are left out: a store's client may name credentials in them."""
        assert self.__cause__ is not None  # see ``as_own``
        return printable("".join(TracebackException.from_exception(self.__cause__).format(chain=False)))


def as_own(error: Exception) -> CaptionAssetsError:
    """An error as one of the project's own: those as they are, any other as an ``UnexpectedError``."""
    if isinstance(error, CaptionAssetsError):
        return error
    text = printable(str(error))
    shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}\N{HORIZONTAL ELLIPSIS}"
    said = f"{type(error).__name__}: {shown}" if shown else type(error).__name__
    own = UnexpectedError(f"unexpected {said}; the log has the traceback")
    own.__cause__ = error
    return own


def printable(text: str) -> str:
    """A text that every log takes: names of files may hold bytes that are not UTF-8, which become escapes."""
    return text.encode(errors="backslashreplace").decode()
