"""Prints the README's table of models, from the models themselves: `python -m scripts.models_table`."""

from __future__ import annotations

from caption_assets.models.variants import UNPINNED, VARIANTS, Variant


def models_table() -> str:
    """One row for each model: its keys, Hub id, revision, licence, and sizes computed from its parameters."""
    rows = [
        "| Key | Model | Revision | Licence of the weights | 10⁹ parameters | Weights in BF16 | With FP8 |",
        "|---|---|---|---|---|---|---|",
    ]
    keys: dict[str, list[str]] = {}
    for key, variant in VARIANTS.items():
        if not variant.bundled:
            keys.setdefault(variant.hub_id, []).append(f"`{key}`")
    models = {variant.hub_id: variant for variant in VARIANTS.values()}
    return "\n".join([*rows, *(row(", ".join(named), models[hub_id]) for hub_id, named in keys.items())])


def row(keys: str, variant: Variant) -> str:
    """A model's row. The default of ``CAPTION_FP8`` has its size in bold."""
    revision = "to be given" if variant.revision == UNPINNED else f"`{variant.revision[:7]}`"
    sizes = [f"{2 * variant.parameters:.1f} GB", f"{2 * variant.parameters - variant.quantizable:.1f} GB"]
    sizes[variant.fp8] = f"**{sizes[variant.fp8]}**"
    cells = [keys, variant.hub_id, revision, variant.license, f"{variant.parameters:.1f}", *sizes]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(models_table())
