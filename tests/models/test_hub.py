"""Models from the Hub: the real client, against a server on loopback that speaks the Hub's protocol."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from caption_assets.models.mirror import publish
from caption_assets.models.variants import Variant
from caption_assets.models.weights import MANIFEST, WeightsError, WeightsManifest, mirror_path
from caption_assets.store.root import Root
from tests.models.hub_server import COMMIT, SIGNATURE, Hub, serve

pytestmark = pytest.mark.store

MODEL = Variant(hub_id="org/model", revision=COMMIT)
WEIGHTS = "model.safetensors"
TOKEN = "hf_pl4nt3dT0k3nTh4tN0b0dyM4yS33"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {
        "config.json": b"{}" * 300,
        "tokenizer/vocab.txt": b"words\n" * 100,
        WEIGHTS: random.Random(0).randbytes(3_000_000),
        "pytorch_model.bin": b"a pickle",
        "modeling_custom.py": b"raise SystemExit",
        ".gitattributes.json": b"{}",
    }
    with serve(Hub(files, frozenset({WEIGHTS, "pytorch_model.bin"}))) as hub:
        use(monkeypatch, hub.url)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # what has arrived is kept in steps of these
        yield hub


def use(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What ``HF_ENDPOINT`` sets when the client is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


class World:
    def __init__(self, folder: Path) -> None:
        self.root = Root.open(str(folder / "root"))
        self.work = folder / "work"

    def publish(self, variant: Variant = MODEL) -> WeightsManifest:
        return publish(self.root, variant, self.work)

    def failure(self, variant: Variant = MODEL) -> str:
        with pytest.raises(WeightsError) as error:
            self.publish(variant)
        assert not self.root.exists(mirror_path(variant, MANIFEST))
        return str(error.value)

    def mirrored(self, name: str) -> Path:
        return Path(self.root.full(mirror_path(MODEL, name)))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_what_a_model_consists_of_is_mirrored_and_nothing_else(hub: Hub, world: World) -> None:
    manifest = world.publish()
    assert [file.path for file in manifest.files] == ["config.json", WEIGHTS, "tokenizer/vocab.txt"]
    for file in manifest.files:
        data = hub.files[file.path]
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert world.mirrored(file.path).read_bytes() == data
    assert {seen.name for seen in hub.seen} == {"config.json", WEIGHTS, "tokenizer/vocab.txt"}
    assert list(world.work.rglob("*.safetensors")) == []


def test_a_whole_mirror_needs_no_hub(hub: Hub, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = world.publish()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert world.publish() == first


def test_a_damaged_or_missing_file_of_the_mirror_is_fetched_alone(hub: Hub, world: World) -> None:
    first = world.publish()
    data = bytearray(world.mirrored(WEIGHTS).read_bytes())
    data[12345] ^= 4
    world.mirrored(WEIGHTS).write_bytes(data)
    world.mirrored("config.json").unlink()
    hub.seen.clear()
    assert world.publish() == first
    assert {seen.name for seen in hub.seen} == {WEIGHTS, "config.json"}
    assert world.mirrored(WEIGHTS).read_bytes() == hub.files[WEIGHTS]


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: Hub, world: World) -> None:
    hub.faults[WEIGHTS] = ["cut"]
    world.publish()
    first, second = [seen for seen in hub.seen if seen.name == WEIGHTS]
    assert (first.begin, second.begin) == (0, 1_500_000)
    assert world.mirrored(WEIGHTS).read_bytes() == hub.files[WEIGHTS]


def test_an_interrupted_download_is_continued_by_the_next_try(hub: Hub, world: World) -> None:
    hub.faults[WEIGHTS] = ["cut", "error"]
    assert "answered 500" in world.failure()
    half = world.work / MODEL.folder / ".cache" / "of-a-killed-process.incomplete"
    half.write_bytes(b"half")
    hub.seen.clear()
    world.publish()
    assert [seen.name for seen in hub.seen] == [WEIGHTS], "the other files were there"
    assert not half.exists()
    assert world.mirrored(WEIGHTS).read_bytes() == hub.files[WEIGHTS]


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_file_with_other_bytes_than_the_hub_says_is_fetched_again(hub: Hub, world: World, name: str) -> None:
    hub.faults[name] = ["corrupt"]
    world.publish()
    assert world.mirrored(name).read_bytes() == hub.files[name]
    assert [seen.begin for seen in hub.seen if seen.name == name] == [0, 0]


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_file_that_is_damaged_twice_ends_with_a_clear_error(hub: Hub, world: World, name: str) -> None:
    hub.faults[name] = ["corrupt", "corrupt"]
    assert f"{name} of org/model arrived twice with other bytes" in world.failure()
    world.publish()
    assert world.mirrored(name).read_bytes() == hub.files[name]


def test_a_file_that_is_too_short_ends_with_a_clear_error(hub: Hub, world: World) -> None:
    hub.faults[WEIGHTS] = ["short"]
    assert "org/model could not be fetched" in world.failure()
    world.publish()
    assert world.mirrored(WEIGHTS).read_bytes() == hub.files[WEIGHTS]


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((404, "RepoNotFound"), "knows no org/model, or not for you: correct the name, or set HF_TOKEN"),
        ((401, "RepoNotFound"), "knows no org/model, or not for you: correct the name, or set HF_TOKEN"),
        ((403, "GatedRepo"), "given only to those who asked for it: ask on its page, and set HF_TOKEN"),
        ((503, ""), "answered 503 when asked for org/model"),
    ],
)
def test_a_refusal_is_told_with_its_remedy(hub: Hub, world: World, refusal: tuple[int, str], message: str) -> None:
    hub.refusal = refusal
    assert message in world.failure()


def test_a_revision_that_is_not_there_is_told(hub: Hub, world: World) -> None:
    assert "has no revision 'beef'" in world.failure(Variant(hub_id="org/model", revision="beef"))


def test_a_branch_is_to_be_pinned(hub: Hub, world: World) -> None:
    message = world.failure(Variant(hub_id="org/model", revision="main"))
    assert f"CAPTION_MODEL_REVISION={COMMIT}" in message


def test_a_model_that_is_not_mirrored_cannot_be_had_offline(
    hub: Hub, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "unset HF_HUB_OFFLINE" in world.failure()


def test_a_hub_that_is_away_is_told(hub: Hub, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "http://127.0.0.1:9")
    assert "127.0.0.1:9" in world.failure()


def test_no_secret_is_told(
    hub: Hub,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)
    hub.faults[WEIGHTS] = ["cut", "error"]
    told = [world.failure()]
    hub.refusal = 403, "GatedRepo"
    told.append(world.failure())
    hub.refusal = None
    told.append(world.publish().to_json())
    assert {seen.token for seen in hub.seen if seen.name == "config.json"} == {f"Bearer {TOKEN}"}
    shown = "".join((*told, caplog.text, *capfd.readouterr()))
    assert "Error while downloading from" in shown  # the client does log the address
    assert TOKEN not in shown
    assert SIGNATURE not in shown
