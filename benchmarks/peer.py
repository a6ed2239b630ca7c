"""Benchmark against NeMo Curator itself: from clips to published captions of two stages, with the sample model.

    python -m benchmarks.peer [--windows 64] [--rounds 3] [--kinds ibbbp,auto,cheap] [--cache FOLDER]

NeMo Curator (Apache-2.0, not shipped) runs in an environment of its own, which the first call makes from PyPI in the
cache folder, with the vLLM of this one. Each arm is a process with its own engine, and they take turns; starts and a
warm-up are not timed, and caches are emptied after each turn. An arm gets shards of 16 clips of one window each:

- `ours`: manifests and captions, as the assets make them, with one decoder per core;
- `nemo`: `CaptionPreparationStage` in two threads and `QwenVL.generate` in batches of a shard's 16; see `peer_nemo`.

Both have the same prompts, and the same number and size of frames, at slightly other times. What is unfair to whom is
in docs/performance.md. Each line also has the number of cores that other processes used, with the idle arm.

Kinds of clips: `ibbbp` has three B-frames between two P-frames; `auto` has x264's own choice of frame types; both have
4 Mbit/s. `cheap` has 0.3 Mbit/s.

The last line is JSON: by kind, NeMo Curator's wall time and CPU time over ours, and the CPU time of our engine process
over that of NeMo Curator's. Each is the median over the rounds. CPU time is that of all processes of an arm.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.peer_clips import KINDS, describe, make_clips
from benchmarks.peer_ours import FIRST, SAMPLING, SECOND, VARIANT
from caption_assets.models.cache import ensure_local
from caption_assets.models.mirror import publish
from caption_assets.store.root import Root

SHARD = 16
"""Number of clips in a shard."""
PACKAGES = ("nemo-curator==1.4.0", "cosmos-xenna==0.2.0", "ray==2.57.0", "msgpack")
"""Installed without their dependencies. The last three are imported, but not used."""
ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_WAIT_POLICY": "passive",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
"""Environment of NeMo Curator's engine. By default vLLM pins all its threads to cores where others run too, and they
spin."""
ENGINE = "EngineCore"
"""Part of the name of vLLM's engine process."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "caption-assets-peer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options.cache, options.kinds.split(","), options.windows, options.rounds)


def measure(folder: Path, cache: Path, kinds: list[str], windows: int, rounds: int) -> None:
    """Run the arms in turns, and print the ratios."""
    python = make_environment(cache)
    for kind in kinds:
        write_clips(folder / kind, kind, windows, cache)
    write_clips(folder / "warm-up", kinds[0], SHARD, cache, skip=windows)
    root = Root.open(str(folder / "weights"))
    publish(root, VARIANT, folder / "model")
    model = ensure_local(root, VARIANT, folder / "model")
    turns = defaultdict[str, list[dict[str, Turn]]](list)
    with ours(model) as first, nemo(model, python) as second:
        arms = first, second
        for arm in arms:
            arm.run(folder / "warm-up", folder / "tables")
        for number in range(rounds):
            for kind in kinds:
                order = arms if number % 2 == 0 else arms[::-1]
                found = {arm.name: arm.run(folder / kind, folder / "tables") for arm in order}
                turns[kind].append(found)
                for name, turn in found.items():
                    print(f"round {number + 1}, {kind}, {name}: {turn.describe(windows)}", flush=True)
                same = sum(found["ours"].captions[clip] == text for clip, text in found["nemo"].captions.items())
                print(f"{same} of {windows} captions are the same", flush=True)
    print(json.dumps({name: round(value, 3) for name, value in ratios(turns).items()}))


def ratios(turns: dict[str, list[dict[str, Turn]]]) -> dict[str, float]:
    """The medians over the rounds of NeMo Curator's times over ours; for the engine ours over NeMo Curator's."""
    pairs = {kind: [(found["nemo"], found["ours"]) for found in rounds] for kind, rounds in turns.items()}
    every = [pair for rounds in pairs.values() for pair in rounds]
    return {
        **{f"wall_{kind}": median(nemo.wall / ours.wall for nemo, ours in rounds) for kind, rounds in pairs.items()},
        **{f"cpu_{kind}": median(nemo.cpu / ours.cpu for nemo, ours in rounds) for kind, rounds in pairs.items()},
        "engine_cpu_vs_peer": median(ours.engine / nemo.engine for nemo, ours in every),
    }


# --- clips and environment


def write_clips(folder: Path, kind: str, windows: int, cache: Path, skip: int = 0) -> None:
    """Write shards of clips; ``skip`` is the number of clips that other folders have."""
    clips = make_clips(KINDS[kind], skip + windows, cache)[skip:]
    print(f"{folder.name}: {len(clips)} clips, the first has {describe(clips[0])}", flush=True)
    for number, clip in enumerate(clips):
        shard = folder / f"shard-{number // SHARD:03}"
        shard.mkdir(parents=True, exist_ok=True)
        (shard / f"{number:04}.mp4").write_bytes(clip)


def make_environment(cache: Path) -> Path:
    """The Python of an environment with NeMo Curator and the packages of this one."""
    folder = cache / "venv"
    python = folder / "bin" / "python"
    if not list(folder.glob("lib/python*/site-packages/nemo_curator")):
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "ours.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return python


# --- arms


@dataclass(frozen=True, slots=True)
class Turn:
    """What an arm used for all clips of a kind."""

    wall: float
    """Seconds."""
    cpu: float
    """CPU seconds of all processes of the arm."""
    engine: float
    """CPU seconds of its engine process."""
    others: float
    """Number of cores that processes outside the arm used."""
    load: float
    """Load average of the minute before."""
    tokens: dict[str, int]
    captions: dict[str, str | None]
    """The second caption of each clip."""

    def describe(self, windows: int) -> str:
        """The figures as a line."""
        return (
            f"{self.wall:.1f} s ({windows / self.wall:.2f} windows/s), CPU {self.cpu:.1f} s, engine "
            f"{self.engine:.1f} s, others {self.others:.2f} cores, load {self.load:.1f}, {self.tokens}"
        )


class Arm:
    """A process that captions shards on command.

    Args:
        name: name of the arm.
        process: the process.
        commands: connection to it.
    """

    def __init__(self, name: str, process: psutil.Process, commands: Connection) -> None:
        self.name = name
        self._process = process
        self._commands = commands

    def run(self, source: Path, tables: Path) -> Turn:
        """Caption the shards of a folder."""
        with tempfile.TemporaryDirectory(dir=tables.parent) as target:
            load, busy, (cpu, engine), begun = os.getloadavg()[0], busy_seconds(), self._cpu(), time.monotonic()
            self._commands.send((str(source), target))
            tokens, captions = self._commands.recv()
            wall = time.monotonic() - begun
            (cpu_after, engine_after), busy_after = self._cpu(), busy_seconds()
        self.expect("idle")
        used = cpu_after - cpu
        return Turn(wall, used, engine_after - engine, (busy_after - busy - used) / wall, load, tokens, captions)

    def expect(self, word: str) -> None:
        """Wait until the arm is ready, or idle."""
        if (found := self._commands.recv()) != word:
            raise RuntimeError(f"{self.name} sent {found!r} instead of {word!r}")

    def _cpu(self) -> tuple[float, float]:
        """CPU seconds of all processes of the arm, and of its engine process."""
        total = engine = 0.0
        for process in (self._process, *self._process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                seconds = sum(process.cpu_times()[:4])  # with those of children that have ended
                total += seconds
                engine += seconds if ENGINE in "".join(process.cmdline()) else 0.0
        return total, engine


def busy_seconds() -> float:
    """CPU seconds of all processes of the machine."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


@contextmanager
def ours(model: Path) -> Iterator[Arm]:
    """This project's arm."""
    command = [sys.executable, "-m", "benchmarks.peer_ours"]
    with started("ours", command, {"model": str(model)}, {}) as arm:
        yield arm


@contextmanager
def nemo(model: Path, python: Path) -> Iterator[Arm]:
    """NeMo Curator's arm."""
    limits = VARIANT.pixels
    own = ("max_num_batched_tokens", "max_num_seqs", "mm_processor_cache_gb")
    options = {
        "model": str(model),
        "pixels": {"min_pixels": limits.min_pixels, "max_pixels": limits.max_pixels},
        "prompt": FIRST,
        "second_prompt": SECOND,
        "max_output_tokens": SAMPLING.max_output_tokens,
        "engine": {
            "dtype": VARIANT.dtype,
            **{name: value for name, value in VARIANT.engine.items() if name not in own},
        },
    }
    command = [str(python), str(Path(__file__).with_name("peer_nemo.py"))]
    with started("nemo", command, options, ENVIRONMENT) as arm:
        yield arm


@contextmanager
def started(name: str, command: list[str], options: dict[str, Any], environment: dict[str, str]) -> Iterator[Arm]:
    """An arm whose engine runs, with defaults of environment variables."""
    commands, end = Pipe()
    arguments = json.dumps({"connection": end.fileno(), **options})
    process = subprocess.Popen([*command, arguments], env={**environment, **os.environ}, pass_fds=[end.fileno()])
    end.close()  # so that the connection ends with the process
    try:
        arm = Arm(name, psutil.Process(process.pid), commands)
        arm.expect("ready")
        yield arm
        commands.send(None)
        process.wait()
    finally:
        process.kill()


if __name__ == "__main__":
    main()
