"""A page of captions in two columns: one HTML file that needs nothing but itself.

It is one file because a presigned address opens one object and no other. So that it shows something at once, however
long it is, it is written in the order in which it is wanted: the first rows and their posters, the text of all others,
the other posters. Each part is a block of JSON, which the page's script takes up as soon as it has arrived and makes
into elements when they come into view.

Texts come from strangers. They reach the page as escaped JSON and become text nodes, never HTML; and should that fail,
the page's policy (CSP) lets no other script run than its own, by hash, and nothing be fetched but pictures beside it.
"""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from caption_assets.report.text_diff import DiffSegments
from caption_assets.store.disk import temporary_folder
from caption_assets.store.root import Root

GROUP = 100
"""Rows in one block, and so those that are there at first: more than a screen holds."""

Facts = Sequence[tuple[str, str]]
"""What is told of something: label and value."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two captions of a row."""

    text: DiffSegments = ("",)
    """The caption, what is unlike the other one's apart; empty if there is none."""
    missing: str | None = None
    """Why there is none."""
    flags: Sequence[str] = ()
    """What is to be noted about it, in a word each."""
    facts: Facts = ()
    """How it was made."""
    making: int | None = None
    """Which of the page's ``makings`` it shares with other rows."""


@dataclass(frozen=True, slots=True)
class Row:
    """One window."""

    name: str
    """Of its clip."""
    place: str
    """Which window of the clip it is, and from when to when."""
    window_id: str
    facets: Sequence[Sequence[str]]
    """For each of the page's ``facets``, the values by which the row is found."""
    sides: tuple[Side, Side]
    changed: bool
    """Whether there are two captions that differ."""
    facts: Facts = ()
    """About the clip."""
    moves: bool = False
    """Whether its animated preview lies beside the page."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A small picture of the whole."""

    png: bytes
    description: str
    """What it shows, for those who cannot see it."""

    @property
    def source(self) -> str:
        """As an image's address."""
        return f"data:image/png;base64,{b64encode(self.png).decode()}"


@dataclass(frozen=True, slots=True)
class Page:
    """All but the rows' pictures."""

    title: str
    subtitle: str
    sides: tuple[str, str]
    """Headings of the two columns."""
    removed: bool
    """Whether the first column marks what the second lacks; the second always marks what is new in it."""
    figures: Facts
    """What is told of the whole."""
    facets: Sequence[str]
    """What rows can be filtered by."""
    makings: Sequence[Facts]
    """How captions were made, as far as many share it."""
    rows: Sequence[Row]
    plots: Sequence[Plot] = ()


ReadPosters = Callable[[Sequence[str]], Mapping[str, bytes]]
"""From ids of windows to the JPEGs of those that have one."""


def publish_page(root: Root, path: str, page: Page, read_posters: ReadPosters) -> None:
    """Write a page below a root in one atomic step. In memory it is never whole.

    Raises:
        StoreError: if the root or this machine's disk cannot be written.
    """
    with temporary_folder() as folder:
        file = folder / Path(path).name  # a store tells from the name that it is HTML
        with file.open("w", encoding="utf-8") as output:
            output.writelines(render(page, read_posters))
        root.upload(path, file)


def render(page: Page, read_posters: ReadPosters) -> Iterator[str]:
    """The page's HTML, piece by piece."""
    style, script, take = (Markup(_frame(name)) for name in ("page.css", "page.js", "take.js"))
    policy = {
        "default-src": "'none'",
        "script-src": f"{_hash(script)} {_hash(take)}",
        "style-src": _hash(style),
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return (
        _environment()
        .get_template("page.html")
        .generate(
            page=page,
            policy="; ".join(f"{directive} {sources}" for directive, sources in policy.items()),
            style=style,
            script=script,
            take=take,
            facets=list(_facets(page)),
            blocks=_blocks(page.rows, read_posters),
        )
    )


@cache
def _environment() -> Environment:
    """Jinja, which escapes everything that is not marked as HTML, and in JSON all that HTML could take for its own."""
    environment = Environment(
        loader=PackageLoader("caption_assets.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    return environment


@cache
def _frame(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a policy names an inline script or style."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _facets(page: Page) -> Iterator[tuple[int, str, list[tuple[str, int]]]]:
    """Number and label of each facet that has values, and how many rows have which, the most frequent first."""
    for number, label in enumerate(page.facets):
        if values := Counter(value for row in page.rows for value in row.facets[number]):
            yield number, label, values.most_common()


def _blocks(rows: Sequence[Row], read_posters: ReadPosters) -> Iterator[tuple[str, Any]]:
    """Kind and content of the page's blocks, in order."""
    groups = [rows[begin : begin + GROUP] for begin in range(0, len(rows), GROUP)]
    for begin, end in ((0, 1), (1, len(groups))):
        for group in groups[begin:end]:
            yield "rows", [asdict(row) for row in group]
        for group in groups[begin:end]:
            posters = read_posters([row.window_id for row in group])
            yield "posters", {window_id: b64encode(poster).decode() for window_id, poster in posters.items()}
