"""Base classes of the project's errors, and the formatting of errors and messages."""

from __future__ import annotations

from traceback import TracebackException

from pydantic import ValidationError

MAX_MESSAGE_CHARACTERS = 500
"""Maximum length of an error's message in another message: some libraries include the data that they failed on."""


class CaptionAssetsError(Exception):
    """An error that users can fix: its message states what is wrong, the value and the remedy, and no secret."""


class UnexpectedError(CaptionAssetsError):
    """A wrapper for an unexpected error, which is its ``__cause__``."""

    @property
    def traceback(self) -> str:
        """Traceback of the cause, without chained errors: a store's client may include credentials in them."""
        assert self.__cause__ is not None  # see ``as_project_error``
        return printable("".join(TracebackException.from_exception(self.__cause__).format(chain=False)))


def as_project_error(error: Exception) -> CaptionAssetsError:
    """The error itself if it is a ``CaptionAssetsError``, otherwise an ``UnexpectedError`` that wraps it."""
    if isinstance(error, CaptionAssetsError):
        return error
    wrapper = UnexpectedError(
        f"unexpected {_with_type(error, printable(str(error)))}; set CAPTION_LOG_LEVEL=debug for the traceback"
    )
    wrapper.__cause__ = error
    return wrapper


def causes(error: BaseException) -> str:
    """An error and its chain of causes on one line, the first cause first."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.insert(0, link)
        link = link.__cause__
    messages: list[str] = []
    for one in chain:
        text = _one_line(one)
        if not any(text in earlier for earlier in messages):
            messages.append(text)
    return "; then ".join(messages)


def _one_line(error: BaseException) -> str:
    """Type and message of an error without line breaks. A validation error is listed by location."""
    text = str(error)
    if isinstance(error, ValidationError):
        found = error.errors(include_url=False, include_context=False, include_input=False)
        text = "; ".join(
            ": ".join([*map(str, detail["loc"]), detail["msg"].removeprefix("Value error, ")]) for detail in found
        )
    return _with_type(error, " ".join(printable(text).split()))


def _with_type(error: BaseException, text: str) -> str:
    """The type of an error and its message, shortened to ``MAX_MESSAGE_CHARACTERS``."""
    shown = text if len(text) <= MAX_MESSAGE_CHARACTERS else f"{text[:MAX_MESSAGE_CHARACTERS]}\N{HORIZONTAL ELLIPSIS}"
    return f"{type(error).__name__}: {shown}" if shown else type(error).__name__


def number_of(number: int, noun: str) -> str:
    """A number with its noun: ``1 clip``, ``2 clips``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """A text that can be encoded as UTF-8: lone surrogates, from file names that are not UTF-8, are escaped."""
    return text.encode(errors="backslashreplace").decode()


class UnreadableClip(Exception):
    """A clip without a video that can be captioned. The message states the reason."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        """Error kind in tables, such as ``not_a_video``, ``no_video_stream``, ``damaged`` or ``too_short``."""

    def __reduce__(self) -> tuple[type[UnreadableClip], tuple[str, str]]:
        """Pickle the kind as well, which an exception does not by default: worker processes raise this error."""
        return type(self), (self.kind, str(self))
