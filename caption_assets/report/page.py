"""A page of captions in columns: one HTML file without external parts.

It is a single file because a presigned address opens one object only. Its parts are blocks of JSON in reading order:
the first rows, their previews, the text of all other rows, the other previews. The page's script reads each block when
it arrives, so that even a long page shows its first rows at once. Rows become elements shortly before they are scrolled
into view.

Captions and names are untrusted. They reach the page as escaped JSON and become text nodes, never HTML. As a second
defense, the page's content security policy allows only its own scripts, by hash, and only images beside the page.
"""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from caption_assets.report.text_diff import DiffSegments
from caption_assets.store.disk import temporary_folder
from caption_assets.store.previews import Preview
from caption_assets.store.root import Root

GROUP = 100
"""Number of rows in a block. The first block fills more than a screen."""

Properties = Sequence[tuple[str, str]]
"""Labels with their values."""


@dataclass(frozen=True, slots=True)
class SideCorrection:
    """A person's correction of a caption."""

    decision: str
    """``accepted``, ``rejected`` or ``rewritten``."""
    reviewer: str
    decided_at: str
    """Time of the decision, for readers."""
    reason: str | None
    model_text: DiffSegments | None
    """The model's text that a rewrite replaces. Differing segments are not in the rewrite."""
    reviewed_text: DiffSegments | None
    """The earlier text that the decision is about, if it is outdated. Differing segments are not in the present one."""
    is_outdated: bool
    """Whether the model's text has changed since."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the captions of a row."""

    text: DiffSegments = ("",)
    """The caption in segments; empty if there is none."""
    missing: str | None = None
    """Reason why there is no caption."""
    is_json: bool = False
    """Whether the caption is JSON."""
    choices: Sequence[tuple[str, float]] = ()
    """The choices with their probabilities, if the caption is one of them."""
    score: float | None = None
    """Probability of the choice that counts as good."""
    flags: Sequence[str] = ()
    """Quality flags."""
    notes: Sequence[str] = ()
    """Other remarks, such as reductions."""
    properties: Properties = ()
    """Provenance of this caption alone."""
    provenance: int | None = None
    """Index of its shared provenance in ``Page.provenance``."""
    correction: SideCorrection | None = None
    """A person's correction. ``text`` is then that of the person, if it is a rewrite."""

    def to_json(self) -> dict[str, Any]:
        """The side as JSON."""
        return {**_shallow(self), "correction": self.correction and _shallow(self.correction)}


@dataclass(frozen=True, slots=True)
class Row:
    """One window."""

    name: str
    """Name of the clip."""
    position: str
    """The window's number and time range."""
    window_id: str
    facets: Sequence[Sequence[str]]
    """The row's values for each of ``Page.facets``."""
    sides: Sequence[Side]
    changed: bool
    """Whether the row has captions that differ from those they are compared with."""
    properties: Properties = ()
    """Properties of the clip."""

    def to_json(self) -> dict[str, Any]:
        """The row as JSON. ``dataclasses.asdict`` copies all values and takes 20 times as long."""
        return {**_shallow(self), "sides": [side.to_json() for side in self.sides]}


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot of the whole shard."""

    png: bytes
    description: str
    """Alternative text."""

    @property
    def source(self) -> str:
        """The image as a data URL."""
        return f"data:image/png;base64,{b64encode(self.png).decode()}"


@dataclass(frozen=True, slots=True)
class Page:
    """A page without its previews."""

    title: str
    subtitle: str
    sides: Sequence[str]
    """Headings of the columns."""
    marks_removed: bool
    """Whether the first column marks words that the second lacks. Other columns always mark added words."""
    figures: Properties
    """Statistics of the whole page."""
    facets: Sequence[str]
    """Properties to filter rows by."""
    provenance: Sequence[Properties]
    """Provenance that many captions share."""
    rows: Sequence[Row]
    plots: Sequence[Plot] = ()


ReadPreviews = Callable[[Sequence[str]], Mapping[str, Preview]]
"""Returns the previews of windows, by window id; windows without a preview are left out."""


def publish_page(root: Root, path: str, page: Page, read_previews: ReadPreviews) -> None:
    """Publish a page atomically. It is rendered to disk in pieces, because all previews may not fit into memory.

    Raises:
        StoreError: if the root or this machine's disk cannot be written.
    """
    with temporary_folder() as folder:
        file = folder / Path(path).name  # the store derives the content type from the name
        with file.open("w", encoding="utf-8") as output:
            output.writelines(render(page, read_previews))
        root.upload(path, file)


def render(page: Page, read_previews: ReadPreviews) -> Iterator[str]:
    """Render the page's HTML in pieces."""
    style, read_block = (_inline(name) for name in ("page.css", "read_block.js"))
    script = Markup("").join(map(_inline, ("elements.js", "page.js")))
    policy = {
        "default-src": "'none'",
        "script-src": f"{_hash(script)} {_hash(read_block)}",
        "style-src": _hash(style),
        "img-src": "data:",
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
            policy=_joined(policy),
            style=style,
            script=script,
            read_block=read_block,
            facets=list(_facets(page)),
            blocks=_blocks(page.rows, read_previews),
        )
    )


def render_scripted(template: str, styles: Sequence[str], script: str, **values: object) -> str:
    """Render a page with one script, which may send requests to the page's own server.

    Args:
        template: name of the HTML template.
        styles: names of the styles.
        script: name of the script.
        values: the template's values.
    """
    style, code = Markup("").join(map(_inline, styles)), _inline(script)
    policy = {
        "default-src": "'none'",
        "script-src": _hash(code),
        "style-src": _hash(style),
        "img-src": "data:",  # the empty icon
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return _environment().get_template(template).render(policy=_joined(policy), style=style, script=code, **values)


def render_application(template: str, styles: Sequence[str], scripts: Sequence[str]) -> str:
    """Render a page without data, whose scripts fetch it from the page's own server."""
    style, script = (Markup("").join(map(_inline, names)) for names in (styles, scripts))
    policy = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "img-src": "'self' data:",
        "media-src": "'self'",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return _environment().get_template(template).render(policy=_joined(policy), style=style, script=script)


@cache
def _environment() -> Environment:
    """The Jinja environment. It escapes all text that is not ``Markup``, and in JSON all characters special to HTML."""
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
def _inline(name: str) -> Markup:
    """A script or style of the templates."""
    return Markup((Path(__file__).parent / "templates" / name).read_text(encoding="utf-8"))


def _joined(policy: Mapping[str, str]) -> str:
    """A content security policy as the page writes it."""
    return "; ".join(f"{directive} {sources}" for directive, sources in policy.items())


def _hash(text: str) -> str:
    """The hash of an inline script or style, as the policy writes it."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _facets(page: Page) -> Iterator[tuple[int, str, list[tuple[str, int]]]]:
    """Number and label of each facet that has values, with the number of rows by value, the most frequent first."""
    for number, label in enumerate(page.facets):
        if values := Counter(value for row in page.rows for value in row.facets[number]):
            yield number, label, values.most_common()


def _blocks(rows: Sequence[Row], read_previews: ReadPreviews) -> Iterator[tuple[str, Any]]:
    """Kind and content of each block, in order."""
    groups = [rows[begin : begin + GROUP] for begin in range(0, len(rows), GROUP)]
    for begin, end in ((0, 1), (1, len(groups))):
        for group in groups[begin:end]:
            yield "rows", [row.to_json() for row in group]
        for group in groups[begin:end]:
            previews = read_previews([row.window_id for row in group])
            yield "previews", {name: (one.frames, b64encode(one.jpeg).decode()) for name, one in previews.items()}


def _shallow(instance: Row | Side | SideCorrection) -> dict[str, Any]:
    return {field.name: getattr(instance, field.name) for field in fields(instance)}
