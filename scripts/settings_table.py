"""Prints the README's table of settings, from the settings themselves: `python -m scripts.settings_table`."""

from __future__ import annotations

import json

from caption_assets.environment import PREFIX
from caption_assets.settings import Settings


def settings_table() -> str:
    """One row for each setting: variable, default, meaning."""
    rows = ["| Variable | Default | Meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        rows.append(f"| `{PREFIX}{name.upper()}` | {shown(default)} | {field.description} |")
    return "\n".join(rows)


def shown(default: object) -> str:
    """A default as the table shows it."""
    if default is None:
        return ""
    return f"`{json.dumps(default) if isinstance(default, dict) else default}`"


if __name__ == "__main__":
    print(settings_table())
