"""The explanation of a stale table: what changed since it was made, with the old and the new value.

It compares plain data: the versions and the file metadata of the stored table, and those that it would have now.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from caption_assets.captioning.open_shard import RECIPE, STAGE_PROMPT, UPSTREAM_PROMPTS, WEIGHTS_ASSET
from caption_assets.store.tables import CLIP_MANIFEST
from caption_assets.store.versions import TableVersions

SHOWN_CHARACTERS = 60
"""Maximum length of a value in a sentence, in characters. Equal beginnings of two values are left out."""
_PROMPT, _PROMPT_OF = "prompt", "prompt of "
_WINDOWS, _WINDOWING, _SCHEMA = "window length", "code version of windowing", "schema version of tables"
_FIRST_WINDOWING = "v1"
"""The version of windowing that code versions leave out."""


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between a stored table and the present settings or inputs."""

    what: str
    """Name of the setting or of the input."""
    old: str
    """Value with which the table was made; empty if there was none."""
    new: str
    """Present value; empty if there is none."""
    is_input: bool = False
    """Whether it is the clips or another table. The schedule follows these, and not new settings or weights."""

    def __str__(self) -> str:
        old, new = _excerpts(self.old, self.new)
        return f"{self.what} changed: {old} → {new}"


@dataclass(frozen=True, slots=True)
class Basis:
    """What a table is made from."""

    code: str
    """Code version."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Data versions of the direct inputs, by name."""
    file_metadata: Mapping[str, str] = field(default_factory=dict)
    """File metadata with the recipe; empty for a manifest, or if it is not known."""

    @classmethod
    def of(cls, versions: TableVersions, file_metadata: Mapping[str, str] | None = None) -> Basis:
        """The basis of a stored table."""
        return cls(versions.code, versions.inputs, file_metadata or {})


def explain(table: str, made_from: Basis, present: Basis) -> list[Change]:
    """What changed since a table was made; empty if it is current.

    Args:
        table: name of the table.
        made_from: what the stored table was made from.
        present: what it would be made from now. Inputs that are missing here are not compared.
    """
    found = [
        Change(_input_name(name), old, new, name != WEIGHTS_ASSET)
        for name, new in present.inputs.items()
        if (old := made_from.inputs.get(name, "")) != new
    ]
    if made_from.code != present.code:
        found += code_changes(table, made_from, present)
    return found


def code_changes(table: str, made_from: Basis, present: Basis) -> list[Change]:
    """What changed in the code version of a table."""
    if table == CLIP_MANIFEST:
        changes = _differences(_manifest_values(made_from.code), _manifest_values(present.code))
    else:
        changes = recipe_changes(made_from.file_metadata, present.file_metadata)
    return changes or [Change("code version", made_from.code, present.code)]


def recipe_changes(former: Mapping[str, str], present: Mapping[str, str]) -> list[Change]:
    """The differences between the recipes of two caption tables, given their file metadata.

    Empty if there are none, or if a table has no recipe.
    """
    if RECIPE not in former or RECIPE not in present:
        return []
    old, new = _recipe_values(former), _recipe_values(present)
    if UPSTREAM_PROMPTS not in former:  # a table of an earlier release
        new = {name: value for name, value in new.items() if not name.startswith(_PROMPT_OF)}
    changes = _differences(old, new)
    # The hash of the prompt is compared, and its text is shown: earlier releases wrote the same slot in another way.
    texts = Change(_PROMPT, former.get(STAGE_PROMPT, ""), present.get(STAGE_PROMPT, ""))
    return [texts if change.what == _PROMPT else change for change in changes]


def upstream_prompts(file_metadata: Mapping[str, str]) -> dict[str, str]:
    """The prompts of the stages upstream, by stage; empty for a table of an earlier release."""
    found: dict[str, str] = json.loads(file_metadata.get(UPSTREAM_PROMPTS, "{}"))
    return found


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[Change]:
    names = sorted({*old, *new})
    return [Change(name, old.get(name, ""), new.get(name, "")) for name in names if old.get(name) != new.get(name)]


def _recipe_values(file_metadata: Mapping[str, str]) -> dict[str, str]:
    """The values of a recipe and the prompts of the stages upstream, by name."""
    values = dict(_flat(json.loads(file_metadata[RECIPE])))
    values |= {f"{_PROMPT_OF}{stage}": prompt for stage, prompt in upstream_prompts(file_metadata).items()}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def _flat(values: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The values, with those of a mapping one by one."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{part}", member) for part, member in value.items())
        else:
            yield name, value


def _manifest_values(code: str) -> dict[str, str]:
    """The parts of a manifest's code version; see ``assets.clip_manifest.manifest_code_version``."""
    schema, _, rest = code.partition("-")
    version, _, cut = rest.partition("-")
    if not version.startswith("v"):
        version, cut = _FIRST_WINDOWING, rest
    return {_SCHEMA: schema, _WINDOWING: version.removeprefix("v"), _WINDOWS: cut}


def _input_name(name: str) -> str:
    """The name of an input in a sentence."""
    return {"shards": "clips", CLIP_MANIFEST: "manifest", WEIGHTS_ASSET: "weights"}.get(name, f"captions of {name}")


def _excerpts(old: str, new: str) -> tuple[str, str]:
    """Two values for a sentence: cut to the part that differs, and in quotes if they are texts."""
    begin = 0
    if max(len(old), len(new)) > SHOWN_CHARACTERS:
        same = next((at for at, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        begin = max(0, old.rfind(" ", 0, max(same - 10, 0)) + 1)
    return _excerpt(old, begin), _excerpt(new, begin)


def _excerpt(text: str, begin: int) -> str:
    if not text:
        return "none"
    part = " ".join(text[begin : begin + SHOWN_CHARACTERS].split())
    ellipsis = "…"
    part = f"{ellipsis * (begin > 0)}{part}{ellipsis * (len(text) > begin + SHOWN_CHARACTERS)}"
    return f"'{part}'" if " " in text.strip() else part
