from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import ProjectClash, check_claim, claim, claim_root, move
from caption_assets.resources import Storage, build_storage
from caption_assets.settings import Settings
from caption_assets.store.failure import StoreError

pytestmark = pytest.mark.fast


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def storage(root: object, source: object = None) -> Storage:
    return build_storage(Settings(root=str(root), source=str(source) if source else None))


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
            f"CAPTION_ROOT={tmp_path}/a, not to CAPTION_ROOT={tmp_path}/b: set DAGSTER_HOME to an instance of its own"
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


def test_second_source_over_one_root_is_refused_with_the_remedy(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    claim(instance, Project(), storage(tmp_path, tmp_path / "a"))
    for function in (claim, claim_root, check_claim):
        with pytest.raises(ProjectClash) as clash:
            function(instance, Project(), storage(tmp_path, tmp_path / "b"))
        assert f"CAPTION_SOURCE={tmp_path}/a, not to CAPTION_SOURCE={tmp_path}/b: set DAGSTER_HOME" in str(clash.value)
        assert "`caption-assets move`" in str(clash.value)
    move(instance, Project(), storage(tmp_path, tmp_path / "b"))
    claim(instance, Project(), storage(tmp_path, tmp_path / "b"))


def test_default_source_is_the_folder_in_the_root(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    claim(instance, Project(), storage(tmp_path))
    claim(instance, Project(), storage(tmp_path, f"{tmp_path}/shards/"))


def test_claim_of_a_root_alone_gets_a_source(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    instance.add_dynamic_partitions("shards/claim", [str(tmp_path)])  # as releases without claims of sources did
    check_claim(instance, Project(), storage(tmp_path, tmp_path / "a"))
    claim(instance, Project(), storage(tmp_path, tmp_path / "b"))
    with pytest.raises(ProjectClash, match=f"belongs to CAPTION_SOURCE={tmp_path}/b"):
        claim(instance, Project(), storage(tmp_path, tmp_path / "a"))


def test_root_claimed_for_weights_accepts_any_source(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    claim_root(instance, Project(), storage(tmp_path, tmp_path / "mistyped"))
    claim(instance, Project(), storage(tmp_path, tmp_path / "a"))
    with pytest.raises(ProjectClash, match="CAPTION_ROOT"):
        claim_root(instance, Project(), storage(tmp_path / "other", tmp_path / "a"))


def test_symbolic_link_is_the_folder_that_it_points_to(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    claim(instance, Project(), storage(tmp_path, tmp_path / "a"))
    claim(instance, Project(), storage(tmp_path, tmp_path / "link"))


def test_retargeted_link_keeps_its_claim(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(tmp_path / "a")
    claim(instance, Project(), storage(tmp_path, link))
    link.unlink()
    link.symlink_to(tmp_path / "b")
    claim(instance, Project(), storage(tmp_path, link))


NAMES = st.text("abz09-_.", min_size=1, max_size=8).filter(lambda name: name.strip("."))


@settings(max_examples=30)
@given(st.lists(NAMES, min_size=1, max_size=3), st.lists(NAMES, min_size=1, max_size=3), st.integers(0, 2))
def test_urls_are_equal_without_their_final_slashes(one: list[str], other: list[str], slashes: int) -> None:
    root = tempfile.gettempdir()
    claimed, wanted = "s3://" + "/".join(one), "s3://" + "/".join(other) + "/" * slashes
    with dg.DagsterInstance.ephemeral() as instance:
        claim_root(instance, Project(), storage(root))
        claim(instance, Project(), storage(root, claimed))
        if one == other:
            claim(instance, Project(), storage(root, wanted))
        else:
            with pytest.raises(ProjectClash, match="CAPTION_SOURCE"):
                claim(instance, Project(), storage(root, wanted))
