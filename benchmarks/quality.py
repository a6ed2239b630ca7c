"""Benchmark of quality flags: the number of good and of bad captions with each flag.

    python -m benchmarks.quality [--good FILE ...]

The project's own good and bad captions are in ``benchmarks/texts``. Further good captions come from text files with one
caption a line. The last line is JSON:

- ``good`` and ``bad``: the number of captions;
- ``false_positive``: the share of the good captions with a flag that causes regeneration;
- ``flagged``: the share of the good captions with any flag;
- ``missed``: the share of the bad captions without the flag of their kind.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from caption_assets.captioning.language import kana_share
from caption_assets.captioning.quality import FLAGS, REGENERATED, find_flags
from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.text import script

TEXTS = Path(__file__).parent / "texts"
INSTRUCTION = built_in("general").stages[1].template
CHINESE = "请描述视频内容。"


@dataclass(frozen=True, slots=True)
class Text:
    """A caption, good or bad."""

    kind: str
    """The flag that a bad caption should have."""
    caption: str
    instruction: str = INSTRUCTION
    neighbor: str | None = None

    @property
    def flags(self) -> frozenset[str]:
        """Flags of the caption."""
        return frozenset(
            find_flags(self.caption, finish_reason="stop", instruction=self.instruction, neighbor=self.neighbor)
        )


def own_texts(name: str) -> list[Text]:
    """Texts of a file in ``benchmarks/texts``."""
    return [Text(**json.loads(line)) for line in (TEXTS / f"{name}.jsonl").read_text().splitlines()]


def line_texts(path: Path) -> Iterator[Text]:
    """Lines of a file. Chinese lines get a Chinese instruction."""
    for line in filter(str.strip, path.read_text().splitlines()):
        letters = Counter(script(letter) for letter in line if letter.isalpha())
        is_chinese = letters["CJK"] > letters["LATIN"] and not kana_share(letters)
        yield Text(path.stem, line, CHINESE if is_chinese else INSTRUCTION)


def main() -> None:
    """Print a table by flag, then the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--good", type=Path, nargs="*", default=[], help="text files with one good caption a line")
    good = own_texts("good")
    for path in parser.parse_args().good:
        good += line_texts(path)
    bad = own_texts("bad")
    flags_of_good, flags_of_bad = [text.flags for text in good], [text.flags for text in bad]
    print(f"{'flag':16} {'on good':>10} {'on bad':>10} {'missed':>10}  regenerates")
    for flag in FLAGS:
        of_kind = [flags for text, flags in zip(bad, flags_of_bad, strict=True) if text.kind == flag.name]
        on_good = sum(flag.name in flags for flags in flags_of_good) / len(good)
        on_bad = sum(flag.name in flags for flags in flags_of_bad)
        missed = sum(flag.name not in flags for flags in of_kind)
        print(f"{flag.name:16} {on_good:10.2%} {on_bad:10} {f'{missed} of {len(of_kind)}':>10}  {flag.regenerates}")
    print(
        json.dumps(
            {
                "good": len(good),
                "false_positive": round(sum(bool(REGENERATED & flags) for flags in flags_of_good) / len(good), 4),
                "flagged": round(sum(map(bool, flags_of_good)) / len(good), 4),
                "bad": len(bad),
                "missed": round(
                    sum(text.kind not in flags for text, flags in zip(bad, flags_of_bad, strict=True)) / len(bad), 4
                ),
            }
        )
    )


if __name__ == "__main__":
    main()
