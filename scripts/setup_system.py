"""Installs the Debian packages that lanes of tests need: `make system`, `make test-rgw`. Takes root and apt-get.

The browser lane needs Chromium, the postgres lane PostgreSQL, the rgw lane Ceph. Tests that compare decoded pictures
need FFmpeg's command line, which `make system` installs with Chromium. Everything else runs without.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Need:
    """What a lane needs of the system."""

    packages: Sequence[str]
    """Debian's names."""
    programs: Sequence[Sequence[str]]
    """Of each group, one must be installed."""

    def met(self) -> bool:
        """True if all programs are there."""
        return all(any(map(find_program, group)) for group in self.programs)


def find_program(name: str) -> str | None:
    """The path of an installed program. Debian's PostgreSQL servers are not on PATH; the newest one counts."""
    servers = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, reversed(servers))]))


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NEEDS = {
    "browser": Need(["chromium", "ffmpeg"], [BROWSERS, ["ffmpeg"]]),
    "postgres": Need(["postgresql"], [["initdb"], ["postgres"]]),
    "rgw": Need(["ceph-mon", "ceph-osd", "radosgw"], [["ceph-mon"], ["ceph-osd"], ["radosgw"]]),
}


def install(need: Need) -> bool:
    """Installs the packages with apt-get; True if that worked."""
    print(f"system: installing {', '.join(need.packages)} with apt-get", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    options = ["-qq", "--yes", "--no-install-recommends"]
    for command in (["apt-get", "-qq", "update"], ["apt-get", "install", *options, *need.packages]):
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            print(f"system: {' '.join(command)} failed:\n{done.stderr.strip()}", file=sys.stderr)
            return False
    return need.met()


def main() -> int:
    """Returns 0 if the programs of all lanes are there, or are now."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lanes", choices=NEEDS, nargs="+")
    ready = [provide(lane) for lane in parser.parse_args().lanes]
    return 0 if all(ready) else 1


def provide(lane: str) -> bool:
    """Installs what a lane lacks, if it lacks anything; True if its programs are there."""
    need = NEEDS[lane]
    if need.met():
        return True
    if os.geteuid() == 0 and shutil.which("apt-get"):
        return install(need)
    packages = " ".join(need.packages)
    print(
        f"system: the {lane} tests need {packages}, and installing that takes root and apt-get.\n"
        f"They cannot run here. Install it (on Debian: sudo apt-get install {packages}).",
        file=sys.stderr,
    )
    return False


if __name__ == "__main__":
    sys.exit(main())
