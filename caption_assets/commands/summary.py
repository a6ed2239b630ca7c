"""The summary of a command: what its runs made, the failed shards with their reasons, and the next step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import dagster as dg

from caption_assets.commands.launch import FinishedRun
from caption_assets.dagster_lib.metadata import count
from caption_assets.dagster_lib.shard_events import first_names

SHOWN_WARNINGS = 2
"""Number of warnings in the summary. The log has all of them."""


@dataclass
class Summary:
    """What the runs of a command have made."""

    chosen: Sequence[str] = ()
    """The chosen shards."""
    unchanged: Sequence[str] = ()
    """Those that needed no captions once their manifests were made."""
    windows: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Number of captioned, failed and reused windows of each captioned shard, in its last stage."""
    failures: dict[str, str] = field(default_factory=dict)
    """Reason of the failure, by shard."""
    warnings: list[str] = field(default_factory=list)
    is_interrupted: bool = False

    def add(self, run: FinishedRun, shards: Collection[str], asset: dg.AssetKey | None = None) -> None:
        """Add a run over ``shards``; with the last ``asset`` that it captions, also the number of its windows."""
        self.warnings += run.warnings
        self.is_interrupted |= run.is_interrupted
        if not run.is_interrupted:
            self.failures |= run.reasons(shards)
        for shard, metadata in run.materialized(asset).items() if asset else ():
            if shard in shards:
                ok, failed, reused = (count(metadata, f"rows_{name}") for name in ("ok", "failed", "reused"))
                self.windows[shard] = ok, failed, reused

    @property
    def not_reached(self) -> int:
        """Number of chosen shards without a result."""
        return len(set(self.chosen) - self.windows.keys() - self.failures.keys() - set(self.unchanged))

    @property
    def is_complete(self) -> bool:
        """Whether all shards are registered, and the chosen ones captioned."""
        return not (self.failures or self.not_reached)

    def failed_shards(self) -> Iterator[str]:
        """A line for each reason, with the shards that failed for it."""
        shards: defaultdict[str, list[str]] = defaultdict(list)
        for shard, reason in self.failures.items():
            shards[reason].append(shard)
        for reason, failed in shards.items():
            yield f"failed: {first_names(failed)}: {reason}"

    def counts(self, seconds: float) -> str:
        """The number of shards and windows, and the time."""
        done = len({*self.windows, *self.unchanged} - self.failures.keys())
        ok, failed, reused = (sum(counts) for counts in zip((0, 0, 0), *self.windows.values(), strict=True))
        refused = len(self.failures.keys() - set(self.chosen))
        shards = f"{done} of {len(self.chosen)} shards captioned, {len(self.failures) - refused} failed"
        shards += f", {refused} not registered" if refused else ""
        shards += f", {self.not_reached} not reached" if self.not_reached else ""
        windows = f"{ok} windows captioned ({reused} reused), {failed} failed"
        return f"{shards}; {windows}; {timedelta(seconds=round(seconds))}"

    def describe_warnings(self) -> str:
        """The number of warnings, and the first of them."""
        if not self.warnings:
            return "none"
        different = list(dict.fromkeys(self.warnings))
        return (
            f"{len(self.warnings)}: "
            + "; ".join(different[:SHOWN_WARNINGS])
            + "; …" * (len(different) > SHOWN_WARNINGS)
        )
