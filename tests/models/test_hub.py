from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from hashlib import sha256
from pathlib import Path

import pytest
from huggingface_hub import constants

from caption_assets.models.mirror import publish, read_manifest
from caption_assets.models.variants import Variant
from caption_assets.models.weights import MANIFEST, WeightsError
from caption_assets.store.root import Root
from tests.models.files import MODEL, PARTS, SHARD, contents, flip_a_bit, folder_of
from tests.models.hub_server import COMMIT, HUB_ID, TOKEN, Fault, HubServer, small_model

pytestmark = pytest.mark.store


def assert_no_mirror(root: Root) -> None:
    assert not root.exists(f"weights/{MODEL.folder}/{MANIFEST}")


def test_the_mirror_holds_the_models_files_and_nothing_else(hub: HubServer, root: Root, cache: Path) -> None:
    manifest = publish(root, MODEL, cache)
    mirrored = contents(folder_of(root))
    assert mirrored.pop(MANIFEST) == manifest.to_json().encode()
    assert mirrored == {name: hub.files[name] for name in PARTS}
    assert [file.path for file in manifest.files] == PARTS
    assert all(file.sha256 == sha256(hub.files[file.path]).hexdigest() for file in manifest.files)
    assert read_manifest(root, MODEL) == manifest


def test_the_manifest_comes_last(hub: HubServer, root: Root, cache: Path) -> None:
    publish(root, MODEL, cache)
    paths = list(folder_of(root).iterdir())
    assert max(paths, key=lambda path: path.stat().st_ctime_ns).name == MANIFEST


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(hub: HubServer, root: Root, cache: Path) -> None:
    hub.token = TOKEN
    publish(root, MODEL, cache)
    by_hub = {asked.authorization for asked in hub.asked if COMMIT in asked.path}
    by_storage = {asked.authorization for asked in hub.asked if COMMIT not in asked.path}
    assert (by_hub, by_storage) == ({f"Bearer {TOKEN}"}, {None})


def test_a_whole_mirror_needs_no_hub(hub: HubServer, root: Root, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = publish(root, MODEL, cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = contents(folder_of(root))
    assert publish(root, MODEL, cache) == manifest
    assert contents(folder_of(root)) == before
    (folder_of(root) / SHARD).unlink()
    with pytest.raises(WeightsError, match=f"{HUB_ID} is not whole in the mirror.*HF_HUB_OFFLINE.*unset"):
        publish(root, MODEL, cache)


@pytest.mark.parametrize("name", [SHARD, "config.json"])
def test_a_bit_that_flips_on_the_way_is_found_and_the_file_fetched_again(
    hub: HubServer, root: Root, cache: Path, name: str
) -> None:
    hub.faults[name] = [Fault(flip=9)]
    publish(root, MODEL, cache)
    assert contents(folder_of(root))[name] == hub.files[name]
    assert hub.sent[name] == 2 * len(hub.files[name])


FAULTS: list[tuple[Fault, str]] = [
    (Fault(flip=50_000), rf"{SHARD} arrives damaged: it has the SHA-256 \w+, but should have \w+; look for"),
    (Fault(short=700), f"{SHARD} arrives damaged: it has 700 bytes, but should have 100"),
    (Fault(status=503), "answers HTTP 503: try again later"),
    (Fault(status=404), f"there is no {HUB_ID}/{SHARD} at {COMMIT}"),
    (Fault(status=403), rf"refuses {HUB_ID}/{SHARD} \(HTTP 403\): set HF_TOKEN"),
]


@pytest.mark.parametrize(("fault", "told"), FAULTS)
def test_what_goes_on_failing_is_told_and_leaves_no_mirror(
    hub: HubServer, root: Root, cache: Path, fault: Fault, told: str
) -> None:
    hub.faults[SHARD] = [fault] * 50
    with pytest.raises(WeightsError, match=told):
        publish(root, MODEL, cache)
    assert_no_mirror(root)
    hub.faults.clear()
    publish(root, MODEL, cache)
    assert contents(folder_of(root))[SHARD] == hub.files[SHARD]


@pytest.mark.parametrize("name", ["", SHARD, "config.json"])
def test_a_hub_that_fails_now_and_then_is_asked_again(hub: HubServer, root: Root, cache: Path, name: str) -> None:
    hub.faults[name] = [Fault(status=500), Fault(status=502)]
    publish(root, MODEL, cache)
    assert contents(folder_of(root))[SHARD] == hub.files[SHARD]


def in_two_seconds() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)


PAUSES: dict[str, Callable[[], dict[str, str]]] = {
    "seconds": lambda: {"Retry-After": "2"},
    "date": lambda: {"Retry-After": in_two_seconds()},
    "the Hub's own header": lambda: {
        "RateLimit": '"api";r=0;t=2',
        "RateLimit-Policy": '"fixed window";"api";q=500;w=300',
    },
}


@pytest.mark.parametrize("name", ["", SHARD, "config.json"])
@pytest.mark.parametrize("form", PAUSES)
def test_the_pause_that_the_hub_asks_for_is_kept(hub: HubServer, root: Root, cache: Path, name: str, form: str) -> None:
    hub.faults[name] = [Fault(status=429, headers=PAUSES[form])]
    publish(root, MODEL, cache)
    assert contents(folder_of(root))[SHARD] == hub.files[SHARD]
    times = [asked.time for asked in hub.asked if asked.path.endswith(name or COMMIT)]
    if name == SHARD:  # is asked of the Hub and of its storage
        times = times[1::2]
    assert len(times) == 2
    assert times[1] - times[0] >= 1  # a date has whole seconds


def test_a_pause_before_an_answer_of_a_failing_hub_is_kept_too(hub: HubServer, root: Root, cache: Path) -> None:
    hub.faults[""] = [Fault(status=503, headers=lambda: {"Retry-After": "1"})]
    publish(root, MODEL, cache)
    first, second = (asked.time for asked in hub.asked if asked.path.endswith(COMMIT))
    assert second - first >= 1


@pytest.mark.parametrize("value", ["soon", "-1", "", "Wed, 21 Oct 2015 07:28:00 GMT", "1e9"])
def test_a_pause_that_means_nothing_is_the_usual_one(hub: HubServer, root: Root, cache: Path, value: str) -> None:
    hub.faults[""] = [Fault(status=429, headers=lambda: {"Retry-After": value})]
    publish(root, MODEL, cache)
    assert contents(folder_of(root))[SHARD] == hub.files[SHARD]


@pytest.mark.parametrize("name", ["", SHARD, "config.json"])
@pytest.mark.parametrize("headers", [{"Retry-After": "86400"}, {"RateLimit": '"api";r=0;t=86400'}])
def test_a_pause_that_is_too_long_is_told_instead(
    hub: HubServer, root: Root, cache: Path, name: str, headers: dict[str, str]
) -> None:
    hub.faults[name] = [Fault(status=429, headers=lambda: headers)]
    told = r"answers HTTP 429 and asks for a pause of 86400 s, more than 600 s: try again after it, or set HF_TOKEN"
    with pytest.raises(WeightsError, match=told):
        publish(root, MODEL, cache)
    assert_no_mirror(root)


def test_a_rate_limit_that_stays_is_told_with_its_remedy(hub: HubServer, root: Root, cache: Path) -> None:
    hub.faults[""] = [Fault(status=429)] * 9
    with pytest.raises(WeightsError, match="answers HTTP 429: try again later, or set HF_TOKEN"):
        publish(root, MODEL, cache)


def test_no_file_is_waited_for_where_another_has_failed(hub: HubServer, root: Root, cache: Path) -> None:
    hub.faults[SHARD] = [Fault(status=429, headers=lambda: {"Retry-After": "500"})]
    hub.faults["config.json"] = [Fault(status=404)] * 9
    with pytest.raises(WeightsError, match=f"there is no {HUB_ID}/config.json"):
        publish(root, MODEL, cache)


@pytest.mark.parametrize("then", [Fault(), Fault(whole=True)])
def test_a_broken_connection_is_continued(hub: HubServer, root: Root, cache: Path, then: Fault) -> None:
    hub.faults[SHARD] = [Fault(cut=70_000), then]
    publish(root, MODEL, cache)
    assert contents(folder_of(root))[SHARD] == hub.files[SHARD]
    assert [asked.range for asked in hub.reads(SHARD) if COMMIT not in asked.path] == [None, "bytes=65536-"]


def test_a_killed_download_is_continued_by_the_next_process(hub: HubServer, root: Root, cache: Path) -> None:
    hub.files |= small_model(shard_bytes=24 << 20)
    hub.faults[SHARD] = [Fault(stall=15 << 20)]
    arriving = Path(root.full(f"weights/.arriving/{MODEL.folder}/{SHARD}"))
    process = publish_elsewhere(root, cache, HF_ENDPOINT=hub.endpoint)
    try:
        wait_for(lambda: arriving.exists() and arriving.stat().st_size >= 10 << 20)
        other = folder_of(root) / SHARD.replace("1-", "2-")
        wait_for(other.exists)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert_no_mirror(root)
    publish(root, MODEL, cache)
    assert contents(folder_of(root)) == {
        **{name: hub.files[name] for name in PARTS},
        MANIFEST: read_manifest(root, MODEL).to_json().encode(),
    }
    assert [asked.range for asked in hub.reads(SHARD) if COMMIT not in asked.path] == [None, f"bytes={10 << 20}-"]
    assert hub.sent[other.name] == len(hub.files[other.name]), "what had come was fetched again"


def publish_elsewhere(
    root: Root, cache: Path, *, largest_file: int = resource.RLIM_INFINITY, **variables: str
) -> subprocess.Popen[bytes]:
    """A process whose files cannot grow beyond ``largest_file`` bytes."""
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest_file},) * 2); "
        "import sys; from pathlib import Path; from caption_assets.models.mirror import publish; "
        "from caption_assets.models.variants import Variant; from caption_assets.store.root import Root; "
        "publish(Root.open(sys.argv[1]), Variant(*sys.argv[3:5]), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, root.url, str(cache), MODEL.hub_id, MODEL.revision]
    return subprocess.Popen(command, env={**os.environ, **variables}, stderr=subprocess.PIPE)


def wait_for(condition: Callable[[], bool]) -> None:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < 60
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("variant", "told"),
    [
        (Variant(HUB_ID, "deadbeef"), f"{HUB_ID} has no revision 'deadbeef': .*/{HUB_ID}/commits/main"),
        (Variant(HUB_ID, "main"), f"'main' is no whole commit.*CAPTION_MODEL_REVISION={COMMIT}"),
        (Variant(HUB_ID, COMMIT[:8]), f"'{COMMIT[:8]}' is no whole commit.*CAPTION_MODEL_REVISION={COMMIT}"),
        (Variant("someone/else", COMMIT), f"there is no someone/else at {COMMIT}"),
    ],
)
def test_a_wrong_name_is_told(hub: HubServer, root: Root, cache: Path, variant: Variant, told: str) -> None:
    with pytest.raises(WeightsError, match=told):
        publish(root, variant, cache)
    assert not root.exists("weights")


def test_a_model_behind_terms_asks_for_a_token(
    hub: HubServer, root: Root, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "another"
    with pytest.raises(
        WeightsError, match=rf"refuses {HUB_ID} \(HTTP 401\): set HF_TOKEN .*accept its terms"
    ) as raised:
        publish(root, MODEL, cache)
    assert TOKEN not in str(raised.value)


def test_a_hub_out_of_reach_is_told(hub: HubServer, root: Root, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:secret@127.0.0.1:9")
    with pytest.raises(WeightsError, match=r"from http://127.0.0.1:9 \(ConnectError.*HF_ENDPOINT") as raised:
        publish(root, MODEL, cache)
    assert "secret" not in str(raised.value)


def test_room_is_looked_for_before_anything_is_fetched(
    hub: HubServer, root: Root, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(root.path.rsplit("/", 1)[0])._replace(free=150_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(WeightsError, match=r"0\.2 MB of weights .*/root/.*, where 0\.1 MB are free.*CAPTION_ROOT"):
        publish(root, MODEL, cache)
    assert hub.reads(SHARD) == []


def test_a_disk_that_fills_up_on_the_way_is_told_and_the_rest_fetched_later(
    hub: HubServer, root: Root, cache: Path
) -> None:
    process = publish_elsewhere(root, cache, largest_file=60_000, HF_ENDPOINT=hub.endpoint)
    assert process.stderr
    told = process.stderr.read().decode()
    assert process.wait() != 0
    assert "WeightsError: cannot write" in told
    assert "File too large; make room there" in told
    assert_no_mirror(root)
    publish(root, MODEL, cache)
    assert contents(folder_of(root))[SHARD] == hub.files[SHARD]


def test_a_damaged_mirror_is_mended(hub: HubServer, root: Root, cache: Path) -> None:
    manifest = publish(root, MODEL, cache)
    weights = folder_of(root) / SHARD
    (folder_of(root) / "config.json").unlink()
    flip_a_bit(weights)
    sent = dict(hub.sent)
    assert publish(root, MODEL, cache) == manifest
    assert contents(folder_of(root))["config.json"] == hub.files["config.json"]
    assert contents(folder_of(root))[SHARD] != hub.files[SHARD], "hashes are compared on demand"
    assert publish(root, MODEL, cache, verify=True) == manifest
    assert contents(folder_of(root))[SHARD] == hub.files[SHARD]
    again = {name for name, count in hub.sent.items() if name and count > sent[name]}
    assert again == {SHARD, "config.json"}


def test_a_manifest_that_cannot_be_read_is_written_anew_and_nothing_fetched(
    hub: HubServer, root: Root, cache: Path
) -> None:
    manifest = publish(root, MODEL, cache)
    (folder_of(root) / MANIFEST).write_text("{")
    sent = hub.sent[SHARD]
    with pytest.raises(WeightsError, match=r"cannot be used .*materialize model_weights again"):
        read_manifest(root, MODEL)
    assert publish(root, MODEL, cache) == manifest
    assert hub.sent[SHARD] == sent


def test_progress_is_told_of_every_byte(hub: HubServer, root: Root, cache: Path) -> None:
    told: list[tuple[int, int]] = []
    manifest = publish(root, MODEL, cache, on_progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (manifest.size, manifest.size)
