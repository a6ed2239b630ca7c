"""Recipe files."""

from __future__ import annotations

import json
from pathlib import Path

FOUR_STAGES = ("stage1_captions", "stage2_captions", "attributes", "alignment")
"""A chain of two texts, JSON that needs no other stage, and a choice that needs the second text."""


def write_recipe(
    folder: Path,
    *,
    stage1: str = "Describe the video.",
    stage2: str = "Improve: {stage1_captions}",
    attributes: str = "Name the shape and the colour as JSON.",
    alignment: str = "Is it right? {stage2_captions}",
) -> Path:
    """Write a recipe file with ``FOUR_STAGES``, given their prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "four.yaml"
    file.write_text(f"""
stages:
  - name: stage1_captions
    prompt: {json.dumps(stage1)}
  - name: stage2_captions
    prompt: {json.dumps(stage2)}
  - name: attributes
    prompt: {json.dumps(attributes)}
    output:
      json:
        type: object
        properties:
          shape: {{type: string}}
          colour: {{type: string}}
          size: {{type: string}}
          motion: {{type: string}}
          background: {{type: string}}
        required: [shape, colour, size, motion, background]
        additionalProperties: false
  - name: alignment
    prompt: {json.dumps(alignment)}
    output:
      choices: [yes, no]
      score: yes
""")
    return file
