"""The installer of the Debian packages that test lanes need: `make system`, `make test-rgw`. It needs root and apt-get.

The browser lane needs Chromium, the postgres lane PostgreSQL, and the rgw lane Ceph. Tests that compare decoded
pictures need FFmpeg's command line, which `make system` installs with Chromium. Other tests need no Debian package.
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
    """Programs that a lane needs, and their packages."""

    packages: Sequence[str]
    """Names of the Debian packages."""
    programs: Sequence[Sequence[str]]
    """Groups of alternatives; one program of each group must be installed."""

    def met(self) -> bool:
        """Whether one program of each group is installed."""
        return all(any(map(find_program, group)) for group in self.programs)


def find_program(name: str) -> str | None:
    """Path of an installed program. Debian's PostgreSQL servers are not on PATH; the newest one is taken."""
    servers = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, reversed(servers))]))


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NEEDS = {
    "browser": Need(["chromium", "ffmpeg"], [BROWSERS, ["ffmpeg"]]),
    "postgres": Need(["postgresql"], [["initdb"], ["postgres"]]),
    "rgw": Need(["ceph-mon", "ceph-osd", "radosgw"], [["ceph-mon"], ["ceph-osd"], ["radosgw"]]),
}


def install(need: Need) -> bool:
    """Install the packages with apt-get, and return whether the programs are there."""
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
    """Install what the given lanes need; the exit status is 0 if they have it all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lanes", choices=NEEDS, nargs="+")
    ready = [provide(lane) for lane in parser.parse_args().lanes]
    return 0 if all(ready) else 1


def provide(lane: str) -> bool:
    """Install the missing programs of a lane, and return whether it has all of them."""
    need = NEEDS[lane]
    if need.met():
        return True
    if os.geteuid() == 0 and shutil.which("apt-get"):
        return install(need)
    packages = " ".join(need.packages)
    print(
        f"system: the {lane} tests need {packages}, and the installation needs root and apt-get. "
        f"Install them (on Debian: sudo apt-get install {packages}).",
        file=sys.stderr,
    )
    return False


if __name__ == "__main__":
    sys.exit(main())
