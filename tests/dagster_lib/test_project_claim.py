from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import ProjectClash, check_claim, claim, move
from caption_assets.resources import Storage, build_storage
from caption_assets.settings import Settings
from caption_assets.store.failure import StoreError

pytestmark = pytest.mark.fast


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def storage(root: object) -> Storage:
    return build_storage(Settings(root=str(root)))


def test_claim_for_the_same_root_succeeds_again(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    for _ in range(2):
        claim(instance, Project(), storage(tmp_path))


def test_claim_for_a_second_root_names_both_roots_and_the_remedy(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    claim(instance, Project(), storage(tmp_path / "a"))
    for function in (claim, check_claim, claim):
        with pytest.raises(ProjectClash) as clash:
            function(instance, Project(), storage(tmp_path / "b"))
        assert str(clash.value).startswith(
            "in this Dagster instance the default project (CAPTION_PROJECT is not set) belongs to "
            f"CAPTION_ROOT={tmp_path}/a, not to CAPTION_ROOT={tmp_path}/b: set CAPTION_PROJECT to a name that no other"
        )


def test_projects_claim_different_roots(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    for name in (None, "north", "south"):
        claim(instance, Project(name), storage(tmp_path / str(name)))
    with pytest.raises(ProjectClash, match=f"CAPTION_PROJECT=north belongs to CAPTION_ROOT={tmp_path}/north, not to"):
        check_claim(instance, Project("north"), storage(tmp_path / "south"))


def test_check_claims_nothing(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    check_claim(instance, Project(), storage(tmp_path / "a"))
    claim(instance, Project(), storage(tmp_path / "b"))


def test_unwritable_root_claims_nothing(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="CAPTION_ROOT is '/proc/nowhere'"):
        claim(instance, Project(), storage("/proc/nowhere"))
    claim(instance, Project(), storage(tmp_path))


@pytest.mark.parametrize(
    "other", ["here", "./here/", "file://{folder}/here", "{folder}/here/", "{folder}//here", "{folder}/a/../here"]
)
def test_claim_accepts_every_spelling_of_a_folder(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    claim(instance, Project(), storage(f"{tmp_path}/here"))
    monkeypatch.chdir(tmp_path)
    claim(instance, Project(), storage(other.format(folder=tmp_path)))


def test_move_transfers_the_claim(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    claim(instance, Project(), storage(tmp_path / "a"))
    move(instance, Project(), storage(tmp_path / "b"))
    claim(instance, Project(), storage(tmp_path / "b"))
    with pytest.raises(ProjectClash, match=f"CAPTION_ROOT={tmp_path}/b"):
        claim(instance, Project(), storage(tmp_path / "a"))
