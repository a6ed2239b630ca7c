"""The root of the project's own errors, and the form of all others."""

from __future__ import annotations

from traceback import TracebackException

from pydantic import ValidationError

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


def as_project_error(error: Exception) -> CaptionAssetsError:
    """An error as one of the project's own: those as they are, any other as an ``UnexpectedError``."""
    if isinstance(error, CaptionAssetsError):
        return error
    text = printable(str(error))
    shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}\N{HORIZONTAL ELLIPSIS}"
    said = f"{type(error).__name__}: {shown}" if shown else type(error).__name__
    own = UnexpectedError(f"unexpected {said}; the log has the traceback")
    own.__cause__ = error
    return own


def causes(error: BaseException) -> str:
    """An error and those that it was raised from, the first of them first, on one line."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.insert(0, link)
        link = link.__cause__
    said: list[str] = []
    for one in chain:
        text = _one_line(one)
        if not any(text in earlier for earlier in said):
            said.append(text)
    return "; then ".join(said)


def _one_line(error: BaseException) -> str:
    """Kind and message of an error without line breaks; of a validation's, each place with what is wrong there."""
    text = str(error)
    if isinstance(error, ValidationError):
        found = error.errors(include_url=False, include_context=False, include_input=False)
        text = "; ".join(
            ": ".join([*map(str, detail["loc"]), detail["msg"].removeprefix("Value error, ")]) for detail in found
        )
    text = " ".join(printable(text).split())
    shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}\N{HORIZONTAL ELLIPSIS}"
    return f"{type(error).__name__}: {shown}" if shown else type(error).__name__


def printable(text: str) -> str:
    """A text that every log takes: names of files may hold bytes that are not UTF-8, which become escapes."""
    return text.encode(errors="backslashreplace").decode()


class UnreadableClip(Exception):
    """A clip that holds no video that can be captioned. The message tells a person why."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        """One word for tables: ``not_a_video``, ``no_video_stream``, ``damaged``, ``too_short`` and the like."""

    def __reduce__(self) -> tuple[type[UnreadableClip], tuple[str, str]]:
        """So that it can come out of a worker process: an exception's own way would lose the kind."""
        return type(self), (self.kind, str(self))
