import ast
from pathlib import Path

import pytest

import caption_assets
from caption_assets.dagster_lib import private_dagster

pytestmark = pytest.mark.fast


def private_imports(path: Path) -> set[str]:
    """Private names of Dagster and its integrations that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("dagster") and "._" in name}


def test_private_api_of_dagster_is_imported_by_one_module_only() -> None:
    files = Path(caption_assets.__file__).parent.rglob("*.py")
    assert {str(path) for path in files if private_imports(path)} == {private_dagster.__file__}
