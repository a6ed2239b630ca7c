"""The renderer of the docs' diagrams, from Mermaid to SVG: `make diagrams`, after a change of a `docs/diagrams/*.mmd`.

Pages show the SVG, so that readers load no script. npm downloads Mermaid into a temporary folder, and Chromium runs it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from scripts.setup_env import ROOT
from scripts.setup_system import BROWSERS

FOLDER = ROOT / "docs" / "diagrams"
MERMAID = "mermaid@11.17.2"
OPTIONS = {
    "startOnLoad": False,
    "theme": "neutral",
    "fontFamily": "Helvetica, Arial, sans-serif",
    "flowchart": {"htmlLabels": False},  # HTML inside SVG is not shown by every viewer
    "htmlLabels": False,
    "deterministicIds": True,
}


def main() -> None:
    """Render every diagram."""
    with tempfile.TemporaryDirectory(prefix="caption-assets-mermaid-") as name, sync_playwright() as playwright:
        library = fetch_mermaid(Path(name))
        chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
        if chromium is None:
            sys.exit("diagrams: no Chromium is installed; run `make system`")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_content("<body></body>")
        page.add_script_tag(path=library)
        page.evaluate("options => mermaid.initialize(options)", OPTIONS)
        for source in sorted(FOLDER.glob("*.mmd")):
            target = source.with_suffix(".svg")
            target.write_text(f"<!-- {digest(source)} -->\n{render(page, source)}\n")
            print(target.relative_to(ROOT))
        browser.close()


def fetch_mermaid(folder: Path) -> Path:
    """Download Mermaid's library, which is one script, from the registry in npm's configuration."""
    subprocess.run(["npm", "pack", "--silent", MERMAID], check=True, cwd=folder, stdout=subprocess.DEVNULL)
    [package] = folder.glob("*.tgz")
    shutil.unpack_archive(package, folder, filter="data")
    return folder / "package" / "dist" / "mermaid.min.js"


def render(page: Page, source: Path) -> str:
    """Render a diagram as SVG, at its natural width."""
    script = "([name, text]) => mermaid.render(name, text).then(drawn => drawn.svg)"
    return str(page.evaluate(script, [source.stem, source.read_text()]))


def digest(source: Path) -> str:
    """Hash of a diagram's source. The SVG contains it, so that a test detects an outdated SVG."""
    return sha256(source.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
