"""Installs the Debian packages that a lane of tests needs: `make system`, `make test-rgw`. Takes root and apt-get.

The browser tests need Chromium, those against a real object store Ceph. Everything else runs without.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Need:
    """What a lane needs of the system."""

    packages: Sequence[str]
    """Debian's names."""
    programs: Sequence[Sequence[str]]
    """Of each group, one must be on PATH."""

    def met(self) -> bool:
        """True if all programs are there."""
        return all(any(map(shutil.which, group)) for group in self.programs)


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NEEDS = {
    "browser": Need(["chromium"], [BROWSERS]),
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
    """Returns 0 if the programs are there, or are now."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lane", choices=NEEDS, nargs="?", default="browser", help="default: %(default)s")
    lane = parser.parse_args().lane
    need = NEEDS[lane]
    if need.met():
        return 0
    if os.geteuid() == 0 and shutil.which("apt-get"):
        return 0 if install(need) else 1
    packages = " ".join(need.packages)
    print(
        f"system: the {lane} tests need {packages}, and installing that takes root and apt-get.\n"
        f"They cannot run here. Install it (on Debian: sudo apt-get install {packages}).",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
