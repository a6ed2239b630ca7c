"""The budget of texts in tokens of the trainer's tokenizer: counting, cutting, and the step that applies both."""

from __future__ import annotations

import json
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from xxhash import xxh3_64_intdigest

from caption_assets.captioning.output import TextOutput
from caption_assets.captioning.quality import REGENERATED
from caption_assets.captioning.stages import Stage
from caption_assets.captioning.text import SCRIPTS_WITHOUT_SPACES, SENTENCE_END, script
from caption_assets.errors import CaptionAssetsError, printable
from caption_assets.export.clip import CaptionedClip, CaptionedWindow, TrainingText
from caption_assets.export.config import BudgetConfig, OverLimit
from caption_assets.models.tokenizer import TOKENIZER, TOKENIZER_CONFIG, local_tokenizer
from caption_assets.store.corrections import Decision
from caption_assets.store.root import Root
from caption_assets.store.tables import Status

if TYPE_CHECKING:
    from tokenizers import Tokenizer

OVER_TOKEN_LIMIT = "over_token_limit"
"""Reason of a window whose texts are all longer than the limit."""
MAX_SANE_LENGTH = 1_000_000
"""Maximum length in a tokenizer's configuration that counts as one: transformers writes 1e30 for none."""
SEPARATORS = " \t,;:-\u2013\u2014("
"""Marks that are removed from the end of a text that was cut between two words."""
MAX_REMEMBERED = 100_000
"""Number of texts with remembered results. Each takes 150 bytes."""
JOINER = "\N{ZERO WIDTH JOINER}"
_EXTENDING = frozenset(f"{JOINER}\u0e33\u0eb3\uff9e\uff9f\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff")
"""Characters beside marks that belong to the one before: Thai and Lao AM, katakana marks, skin tones."""


class TokenizerError(CaptionAssetsError):
    """A tokenizer that cannot be used."""


@dataclass(frozen=True, slots=True)
class TokenCounter:
    """A tokenizer with its limit.

    It remembers its results by a hash of the text, because an export reads each text more than once.
    """

    tokenizer: Tokenizer
    limit: int | None
    """Maximum number of tokens of a text; None for no limit."""
    _counts: dict[int, int] = field(default_factory=dict, init=False)
    _ends: dict[int, int] = field(default_factory=dict, init=False)

    def count(self, text: str) -> int:
        """Number of tokens of a text, with the special tokens that the tokenizer adds."""
        return _remember(self._counts, text, lambda: len(self.tokenizer.encode(text).ids))

    def fits(self, text: str) -> bool:
        """Whether a text is within the limit."""
        return self.limit is None or len(self.tokenizer.encode(text).ids) <= self.limit

    def cut(self, text: str) -> str | None:
        """The longest beginning of a text within the limit that ends with a sentence.

        If the first sentence is too long, it is cut between two words. None if not even the first word fits.
        """
        return text[: _remember(self._ends, text, lambda: len(self._cut(text)))] or None

    def _cut(self, text: str) -> str:
        sentences = [text[:end].rstrip() for end in _sentence_ends(text)]
        if found := _last(sentences, self.fits):
            return found
        return _last([text[:end].rstrip(SEPARATORS) for end in _word_ends(text)], self.fits) or ""


def open_tokenizer(root: Root, budget: BudgetConfig) -> TokenCounter:
    """The tokenizer of a budget. Its files are downloaded once, and loaded once for each process.

    Raises:
        WeightsError: if the files cannot be downloaded.
        TokenizerError: if they are no tokenizer, or a limit is needed and neither setting nor tokenizer has one.
    """
    folder = local_tokenizer(root, budget.tokenizer, budget.cache)
    limit = budget.max_tokens or _max_length(folder / TOKENIZER_CONFIG)
    if limit is None and budget.over_limit is not OverLimit.KEEP:
        raise TokenizerError(
            f"{TOKENIZER_CONFIG} of the tokenizer {budget.tokenizer.hub_id} names no maximum length: set "
            "CAPTION_EXPORT_MAX_TOKENS"
        )
    return _load(folder, limit)


@lru_cache(maxsize=1)
def _load(folder: Path, limit: int | None) -> TokenCounter:
    from tokenizers import Tokenizer  # slow to import, and only budgets need it

    try:
        found = Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:  # the library raises no other type
        raise TokenizerError(
            f"cannot load {folder / TOKENIZER} ({printable(str(error))}): write it again with save_pretrained of "
            "transformers"
        ) from None
    found.no_truncation()  # the file may have both, and a count would be that of the limit
    found.no_padding()
    return TokenCounter(found, limit)


def _max_length(config: Path) -> int | None:
    """The maximum length in a tokenizer's configuration, if it has one."""
    try:
        length = json.loads(config.read_bytes()).get("model_max_length")
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError) as error:
        raise TokenizerError(f"{config} is no JSON object ({error}): write it again with save_pretrained") from None
    return int(length) if isinstance(length, int | float) and 1 <= length <= MAX_SANE_LENGTH else None


class ApplyBudget:
    """The step that counts the tokens of the texts, and cuts, replaces or drops those over the limit.

    ``cut`` cuts free texts only: half a JSON is none, so that such a text is dropped. ``shorter`` takes the longest
    caption of another stage with free text that fits; if there is none, the text is cut. A window is left out if all of
    its texts are dropped.

    Args:
        counter: the tokenizer.
        over_limit: what becomes of a text over the limit.
        stages: the stages of the recipe.
    """

    def __init__(self, counter: TokenCounter, over_limit: OverLimit, stages: tuple[Stage, ...]) -> None:
        self._counter = counter
        self._over_limit = over_limit
        self._free = tuple(stage.name for stage in stages if isinstance(stage.output, TextOutput))

    def __call__(self, window: CaptionedWindow) -> CaptionedWindow | str:
        """The window with texts within the limit, or the reason why it is left out."""
        kept: dict[str, TrainingText] = {}
        for text in window.texts:
            if found := self._apply(text, window):
                other = kept.get(found.stage)  # a shorter text may be trained on already
                kept[found.stage] = replace(found, weight=found.weight + other.weight) if other else found
        return replace(window, texts=tuple(kept.values())) if kept else OVER_TOKEN_LIMIT

    def _apply(self, text: TrainingText, window: CaptionedWindow) -> TrainingText | None:
        tokens = self._counter.count(text.text)
        counted = replace(text, tokens=tokens, full_tokens=tokens)
        if self._counter.limit is None or tokens <= self._counter.limit:
            return counted
        match self._over_limit:
            case OverLimit.KEEP:
                return counted
            case OverLimit.LEAVE_OUT:
                return None
            case OverLimit.CUT:
                return self._cut(counted)
            case OverLimit.SHORTER:
                return self._shorter(counted, window) or self._cut(counted)

    def _cut(self, text: TrainingText) -> TrainingText | None:
        found = self._counter.cut(text.text) if text.stage in self._free else None
        return replace(text, text=found, tokens=self._counter.count(found)) if found else None

    def _shorter(self, text: TrainingText, window: CaptionedWindow) -> TrainingText | None:
        candidates = (stage for stage in self._free if stage != text.stage and _is_good(window, stage))
        counted = ((stage, window.captions[stage].caption or "") for stage in candidates)
        found = [replace(text, stage=stage, text=other, tokens=self._counter.count(other)) for stage, other in counted]
        fitting = [one for one in found if one.tokens is not None and one.tokens <= (self._counter.limit or 0)]
        return max(fitting, key=lambda one: one.tokens or 0, default=None)


def _is_good(window: CaptionedWindow, stage: str) -> bool:
    """Whether a caption can be trained on: it is there, not rejected, and has no serious flags unless accepted."""
    row, decision = window.captions[stage], window.present_decision(stage)
    if row.status is Status.FAILED or decision is Decision.REJECT:
        return False
    return decision is Decision.ACCEPT or not REGENERATED.intersection(row.flags)


@dataclass(slots=True)
class TokenTally:
    """The lengths of the exported texts, in tokens."""

    is_counted: bool = False
    """Whether there is a tokenizer."""
    limit: int | None = None
    texts: int = 0
    over_limit: int = 0
    """Number of texts over the limit, before they were cut or replaced, and of windows left out for that reason."""
    dropped: int = 0
    """Number of those windows."""
    tokens: int = 0
    longest: int = 0
    """Maximum length of the captions, before that."""

    def add(self, clip: CaptionedClip) -> None:
        """Count the texts of a clip."""
        dropped = clip.left_out.count(OVER_TOKEN_LIMIT)
        self.dropped += dropped
        self.over_limit += dropped
        for text in (text for window in clip.windows for text in window.texts):
            self.texts += 1
            self.tokens += text.tokens or 0
            self.longest = max(self.longest, text.full_tokens or 0)
            self.over_limit += self.limit is not None and (text.full_tokens or 0) > self.limit

    @property
    def counts(self) -> dict[str, int]:
        """The counts by name; empty without a tokenizer."""
        names = ("texts", "over_limit", "dropped", "tokens", "longest", "limit")
        found = {name: getattr(self, name) for name in names} if self.is_counted else {}
        return {name: value for name, value in found.items() if value is not None}


def tally_of(root: Root, budget: BudgetConfig | None) -> TokenTally:
    """An empty tally. Raises the errors of ``open_tokenizer``."""
    return TokenTally() if budget is None else TokenTally(True, open_tokenizer(root, budget).limit)


def _remember(known: dict[int, int], text: str, compute: Callable[[], int]) -> int:
    """The number that is known of a text, or else computed, and remembered if there is space."""
    key = xxh3_64_intdigest(text.encode())
    if (found := known.get(key)) is None:
        found = compute()
        if len(known) < MAX_REMEMBERED:
            known[key] = found
    return found


def _sentence_ends(text: str) -> list[int]:
    """The positions at which sentences end."""
    return [match.start() for match in SENTENCE_END.finditer(text) if not _extends(text, match.start())]


def _word_ends(text: str) -> list[int]:
    """The positions at which words end; in scripts without spaces, also between letters."""
    return [
        position
        for position in range(1, len(text))
        if _parts_words(text[position - 1], text[position]) and not _extends(text, position)
    ]


def _parts_words(before: str, after: str) -> bool:
    if after.isspace():
        return not before.isspace()
    return before.isalnum() and after.isalnum() and script(before) in SCRIPTS_WITHOUT_SPACES


def _extends(text: str, position: int) -> bool:
    """Whether the character at a position belongs to the one before it (Unicode Standard Annex 29)."""
    if position >= len(text):
        return False
    after = text[position]
    return after in _EXTENDING or unicodedata.category(after).startswith("M") or text[position - 1] == JOINER


def _last(beginnings: Sequence[str], fits: Callable[[str], bool]) -> str | None:
    """The last of several texts of growing length that fits."""
    position = bisect_left(range(len(beginnings)), True, key=lambda number: not fits(beginnings[number]))
    return beginnings[position - 1] or None if position else None
