"""Environment variables: those of a ``.env``, the settings' prefix, renamed settings, and misspelled ones."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from dotenv import dotenv_values

PREFIX = "CAPTION_"
RENAMED = {
    "CAPTION_BACKFILL_SHARDS": "CAPTION_BACKFILL_CONCURRENCY",
    "CAPTION_CLIP_MEMORY_GB": "CAPTION_DECODE_MEMORY_GB",
    "CAPTION_CLIP_SECONDS": "CAPTION_DECODE_TIMEOUT_SECONDS",
    "CAPTION_CLIP_WORKERS": "CAPTION_DECODE_WORKERS",
    "CAPTION_GPU_NODE": "CAPTION_GPU_NODE_SELECTOR",
    "CAPTION_LOOK_SECONDS": "CAPTION_SENSOR_INTERVAL_SECONDS",
    "CAPTION_MAX_ATTEMPTS": "CAPTION_MAX_WINDOW_ATTEMPTS",
    "CAPTION_PROMPT": "CAPTION_RECIPE",
    "CAPTION_REQUEST_SECONDS": "CAPTION_REQUEST_TIMEOUT_SECONDS",
    "CAPTION_STEP_ACCOUNT": "CAPTION_STEP_SERVICE_ACCOUNT",
}
"""Variables of earlier releases, each with its present name."""
IN_RECIPES = frozenset({"CAPTION_STAGE1_PROMPT", "CAPTION_STAGE2_PROMPT"})
"""Variables of earlier releases with texts that are now in recipe files."""
_HEAD = "CAPTION"
_MIN_HEAD_SIMILARITY = 0.85
"""Minimum similarity of a misspelled prefix: one missing or surplus letter."""
_MIN_TYPO_SIMILARITY = 0.8
"""Minimum similarity of a name after a misspelled prefix: two swapped letters of five."""
_MIN_SIMILARITY = 0.6
"""Minimum similarity of a name after the right prefix; difflib's default. ``MAX_TOKENS`` has 0.91 to
``MAX_OUTPUT_TOKENS``, ``NUM_WORKERS`` has 0.64 to ``DECODE_WORKERS``."""
_MAX_SUGGESTIONS = 3
"""Maximum number of suggested names."""
_SERVICE = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
"""Variables that Kubernetes sets in each pod for the Services of its namespace."""
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
"""Prefix of the value of ``<SERVICE>_PORT``, the one variable of a Service that its name does not identify."""


@dataclass(frozen=True, slots=True)
class UnknownSetting:
    """A variable that looks like a setting of this project but is not one."""

    name: str
    suggestions: tuple[str, ...]
    """Similar settings, the most similar first; empty if the variable may be another program's."""

    def __str__(self) -> str:
        if self.name in IN_RECIPES:
            return (
                f"Unknown setting {self.name}; prompts are now in a recipe file: write one (docs/how-to/recipes.md), "
                "and set CAPTION_RECIPE to it"
            )
        if self.name in RENAMED:
            return f"Unknown setting {self.name}; it is now {self.suggestions[0]}"
        return f"Unknown setting {self.name}; did you mean {' or '.join(self.suggestions)}? Rename or unset it"


def load_env_file(folder: Path) -> None:
    """Set the variables of a folder's ``.env``, if it has one, as Dagster's commands do.

    A value of the file replaces that of the environment. ``NAME=${NAME:-value}`` is a default instead.
    """
    os.environ.update({name: value for name, value in dotenv_values(folder / ".env").items() if value is not None})


def unknown_settings(environment: Mapping[str, str], known: Collection[str]) -> Iterator[UnknownSetting]:
    """The variables with the settings' prefix, or a misspelled one, that are not settings; sorted by name.

    Variables of Kubernetes Services, empty variables, and other programs' variables with a similar prefix are excluded:
    a misspelled prefix must be followed by the name of a setting.

    Args:
        environment: the environment variables.
        known: names of all settings' variables, such as ``CAPTION_MODEL``.
    """
    for name, value in sorted(environment.items()):
        if value and name not in known and not _is_service_variable(name, value):
            suggestions = _suggestions(name, known)
            if suggestions or name.startswith(PREFIX):
                yield UnknownSetting(name, suggestions)


def _is_service_variable(name: str, value: str) -> bool:
    return bool(_SERVICE.search(name)) or (name.endswith("_PORT") and is_service_address(value))


def is_service_address(value: str) -> bool:
    """Whether the value of ``<SERVICE>_PORT`` is set by Kubernetes, such as ``tcp://10.0.0.1:80``."""
    return bool(_SERVICE_ADDRESS.match(value))


def _suggestions(name: str, known: Collection[str]) -> tuple[str, ...]:
    if name in RENAMED:
        return (RENAMED[name],)
    if name in IN_RECIPES:
        return ("CAPTION_RECIPE",)
    # Case, dashes, dots, missing and doubled underscores.
    if same := [setting for setting in known if _letters(setting) == _letters(name)]:
        return tuple(same)
    head, _, rest = re.sub(r"[^A-Z0-9]+", "_", name.upper()).partition("_")
    if not _is_head(head):
        return ()
    has_prefix = head == _HEAD and name.isupper()
    required, measure = (_MIN_SIMILARITY, _similarity) if has_prefix else (_MIN_TYPO_SIMILARITY, _similarity_of_letters)
    scores = {setting: measure(rest, setting.removeprefix(PREFIX)) for setting in known}
    near = sorted((setting for setting in known if scores[setting] >= required), key=lambda one: (-scores[one], one))
    return tuple(near[:_MAX_SUGGESTIONS])


def _letters(name: str) -> str:
    return re.sub(r"[^A-Z0-9]", "", name.upper())


def _is_head(head: str) -> bool:
    """Whether a name's first word begins with the prefix or misspells it: ``CAPTON`` does, ``CAPTAIN`` does not."""
    if head.startswith(_HEAD) or sorted(head) == sorted(_HEAD):
        return True
    if len(head) == len(_HEAD):
        return sum(one != other for one, other in zip(head, _HEAD, strict=True)) == 1
    return _similarity_of_letters(head, _HEAD) >= _MIN_HEAD_SIMILARITY


def _similarity(given: str, setting: str) -> float:
    """Similarity from 0 to 1: that of the letters, minus 0.1 if no word is the same.

    At least 0.7 if one name has all words of the other.
    """
    letters = _similarity_of_letters(given, setting)
    one, other = set(given.split("_")), set(setting.split("_"))
    if one <= other or other <= one:
        return max(letters, 0.7 + 0.2 * len(one & other) / len(one | other) + 0.1 * letters)
    return letters if one & other else letters - 0.1


def _similarity_of_letters(given: str, setting: str) -> float:
    return SequenceMatcher(None, given, setting).ratio()
