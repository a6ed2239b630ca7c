"""Prints the README's table of settings, from the settings themselves: `python -m scripts.settings_table`."""

from __future__ import annotations

from caption_assets.captioning.prompts import DEFAULT_PROMPT
from caption_assets.settings import PREFIX, Settings


def settings_table() -> str:
    """One row for each setting: variable, default, meaning."""
    rows = ["| Variable | Default | Meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        rows.append(f"| `{PREFIX}{name.upper()}` | {shown(field.default)} | {field.description} |")
    return "\n".join(rows)


def shown(default: object) -> str:
    """A default as the table shows it; the prompts are too long for it."""
    if default is None:
        return ""
    if default in (DEFAULT_PROMPT.stage1, DEFAULT_PROMPT.stage2):
        return "see `captioning/prompts.py`"
    return f"`{default}`"


if __name__ == "__main__":
    print(settings_table())
