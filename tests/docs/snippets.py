"""The code snippets of README and docs.

All snippets run, except those with a reason in an HTML comment on the line before: ``<!-- not run: needs a GPU -->``.
For these, tests only check the syntax, and that settings, commands and assets exist.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent
PAGES = {
    str(path.relative_to(REPOSITORY)): path.read_text()
    for path in (REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md")))
}
"""Text of each page, by its path."""
_FENCE = re.compile(
    r"^(?:[ ]*<!-- not run: (?P<reason>[^\n]+) -->\n)?"
    r"(?P<indent>[ ]*)```(?P<language>sh|python)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Snippet:
    """One fenced block of shell or Python code."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None
    """Reason for not running it; None if it runs."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def _find_snippets() -> list[Snippet]:
    found = []
    for page, text in PAGES.items():
        for match in _FENCE.finditer(text):
            code = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
            line = text.count("\n", 0, match.start("language")) + 1
            found.append(Snippet(page, line, match["language"], code, match["reason"]))
    return found


SNIPPETS = _find_snippets()
