"""Installs the Debian packages that the tests need: `make system`. Root and apt-get are needed for that.

Only the browser tests need one, Chromium. Everything else runs without.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PACKAGE = "chromium"


def has_browser() -> bool:
    """True if a browser that Playwright can drive is on PATH."""
    return any(map(shutil.which, BROWSERS))


def install() -> bool:
    """Installs Chromium with apt-get; True if that worked."""
    print(f"system: installing {PACKAGE} with apt-get", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    options = ["-qq", "--yes", "--no-install-recommends"]
    for command in (["apt-get", "-qq", "update"], ["apt-get", "install", *options, PACKAGE]):
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            print(f"system: {' '.join(command)} failed:\n{done.stderr.strip()}", file=sys.stderr)
            return False
    return has_browser()


def main() -> int:
    """Returns 0 if the browser is there, or is now."""
    if has_browser():
        return 0
    if os.geteuid() == 0 and shutil.which("apt-get"):
        return 0 if install() else 1
    print(
        f"system: no browser was found ({', '.join(BROWSERS)}), and installing one takes root and apt-get.\n"
        "The browser tests cannot run here. Install Chromium (on Debian: sudo apt-get install chromium).",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
