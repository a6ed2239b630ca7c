from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from hashlib import sha256
from pathlib import Path

import pytest
from huggingface_hub import constants

from caption_assets.models.cache import CacheConfig, ensure_local, ensure_local_from_source
from caption_assets.models.mirror import publish, read_weights_manifest
from caption_assets.models.variants import Variant
from caption_assets.models.weights import MANIFEST, WeightsError
from caption_assets.store.root import Root
from tests.models.files import MODEL, PARTS, SHARD, contents, flip_a_bit, folder_of
from tests.models.hub_server import COMMIT, HUB_ID, TOKEN, Fault, HubServer, small_model
from tests.processes import wait_until

pytestmark = pytest.mark.store


def assert_no_mirror(root: Root) -> None:
    assert not root.exists(f"weights/{MODEL.folder}/{MANIFEST}")


def test_mirror_contains_only_the_models_files(hub: HubServer, root: Root, cache: Path) -> None:
    manifest = publish(root, MODEL, cache)
    mirrored = contents(folder_of(root))
    assert mirrored.pop(MANIFEST) == manifest.to_json().encode()
    assert mirrored == {name: hub.files[name] for name in PARTS}
    assert [file.path for file in manifest.files] == PARTS
    assert all(file.sha256 == sha256(hub.files[file.path]).hexdigest() for file in manifest.files)
    assert read_weights_manifest(root, MODEL) == manifest


def test_manifest_is_written_last(hub: HubServer, root: Root, cache: Path) -> None:
    publish(root, MODEL, cache)
    paths = list(folder_of(root).iterdir())
    assert max(paths, key=lambda path: path.stat().st_ctime_ns).name == MANIFEST


def test_token_is_sent_to_the_hub_but_not_to_redirect_targets(hub: HubServer, root: Root, cache: Path) -> None:
    hub.token = TOKEN
    publish(root, MODEL, cache)
    by_hub = {request.authorization for request in hub.requests if COMMIT in request.path}
    by_storage = {request.authorization for request in hub.requests if COMMIT not in request.path}
    assert (by_hub, by_storage) == ({f"Bearer {TOKEN}"}, {None})


def test_complete_mirror_needs_no_hub(hub: HubServer, root: Root, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = publish(root, MODEL, cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = contents(folder_of(root))
    assert publish(root, MODEL, cache) == manifest
    assert contents(folder_of(root)) == before
    (folder_of(root) / SHARD).unlink()
    with pytest.raises(WeightsError, match=f"the mirror of {HUB_ID} is incomplete.*HF_HUB_OFFLINE.*unset"):
        publish(root, MODEL, cache)


@pytest.mark.parametrize("name", [SHARD, "config.json"])
def test_corrupted_download_is_detected_and_repeated(hub: HubServer, root: Root, cache: Path, name: str) -> None:
    hub.faults[name] = [Fault(flip=9)]
    publish(root, MODEL, cache)
    assert contents(folder_of(root))[name] == hub.files[name]
    assert hub.sent[name] == 2 * len(hub.files[name])


FAULTS: list[tuple[Fault, str]] = [
    (Fault(flip=50_000), rf"{SHARD} is damaged: its SHA-256 is \w+ instead of \w+; check the connection"),
    (Fault(short=700), f"{SHARD} is damaged: its size is 700 bytes instead of 100"),
    (Fault(status=503), r"\(HTTP 503\): retry later"),
    (Fault(status=404), f"has no {HUB_ID}/{SHARD} at {COMMIT}"),
    (Fault(status=403), rf"denies access to {HUB_ID}/{SHARD} \(HTTP 403\): set HF_TOKEN"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_persistent_failure_is_reported_and_leaves_no_manifest(
    hub: HubServer, root: Root, cache: Path, fault: Fault, message: str
) -> None:
    hub.faults[SHARD] = [fault] * 50
    with pytest.raises(WeightsError, match=message):
        publish(root, MODEL, cache)
    assert_no_mirror(root)
    hub.faults.clear()
    publish(root, MODEL, cache)
    assert contents(folder_of(root))[SHARD] == hub.files[SHARD]


@pytest.mark.parametrize("name", ["", SHARD, "config.json"])
def test_server_errors_are_retried(hub: HubServer, root: Root, cache: Path, name: str) -> None:
    hub.faults[name] = [Fault(status=500), Fault(status=502)]
    publish(root, MODEL, cache)
    assert contents(folder_of(root))[SHARD] == hub.files[SHARD]


def in_two_seconds() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)


DELAYS: dict[str, Callable[[], dict[str, str]]] = {
    "seconds": lambda: {"Retry-After": "2"},
    "date": lambda: {"Retry-After": in_two_seconds()},
    "the Hub's own header": lambda: {
        "RateLimit": '"api";r=0;t=2',
        "RateLimit-Policy": '"fixed window";"api";q=500;w=300',
    },
}


@pytest.mark.parametrize("name", ["", SHARD, "config.json"])
@pytest.mark.parametrize("form", DELAYS)
def test_delay_requested_by_the_hub_is_respected(hub: HubServer, root: Root, cache: Path, name: str, form: str) -> None:
    hub.faults[name] = [Fault(status=429, headers=DELAYS[form])]
    publish(root, MODEL, cache)
    assert contents(folder_of(root))[SHARD] == hub.files[SHARD]
    times = [request.time for request in hub.requests if request.path.endswith(name or COMMIT)]
    if name == SHARD:  # requested from the Hub and from its storage
        times = times[1::2]
    assert len(times) == 2
    assert times[1] - times[0] >= 1  # a date has whole seconds


def test_delay_requested_with_http_503_is_respected(hub: HubServer, root: Root, cache: Path) -> None:
    hub.faults[""] = [Fault(status=503, headers=lambda: {"Retry-After": "1"})]
    publish(root, MODEL, cache)
    first, second = (request.time for request in hub.requests if request.path.endswith(COMMIT))
    assert second - first >= 1


@pytest.mark.parametrize("value", ["soon", "-1", "", "Wed, 21 Oct 2015 07:28:00 GMT", "1e9"])
def test_invalid_delay_is_replaced_by_the_default(hub: HubServer, root: Root, cache: Path, value: str) -> None:
    hub.faults[""] = [Fault(status=429, headers=lambda: {"Retry-After": value})]
    publish(root, MODEL, cache)
    assert contents(folder_of(root))[SHARD] == hub.files[SHARD]


@pytest.mark.parametrize("name", ["", SHARD, "config.json"])
@pytest.mark.parametrize("headers", [{"Retry-After": "86400"}, {"RateLimit": '"api";r=0;t=86400'}])
def test_too_long_delay_is_an_error(
    hub: HubServer, root: Root, cache: Path, name: str, headers: dict[str, str]
) -> None:
    hub.faults[name] = [Fault(status=429, headers=lambda: headers)]
    message = r"answers HTTP 429 and requests a delay of 86400 s, more than 600 s: retry after it, or set HF_TOKEN"
    with pytest.raises(WeightsError, match=message):
        publish(root, MODEL, cache)
    assert_no_mirror(root)


def test_persistent_rate_limit_is_an_error_with_a_remedy(hub: HubServer, root: Root, cache: Path) -> None:
    hub.faults[""] = [Fault(status=429)] * 9
    with pytest.raises(WeightsError, match=r"\(HTTP 429\): retry later, or set HF_TOKEN"):
        publish(root, MODEL, cache)


def test_failure_of_a_file_ends_the_delays_of_others(hub: HubServer, root: Root, cache: Path) -> None:
    hub.faults[SHARD] = [Fault(status=429, headers=lambda: {"Retry-After": "500"})]
    hub.faults["config.json"] = [Fault(status=404)] * 9
    with pytest.raises(WeightsError, match=f"has no {HUB_ID}/config.json"):
        publish(root, MODEL, cache)


@pytest.mark.parametrize("then", [Fault(), Fault(ignores_range=True)])
def test_broken_connection_resumes(hub: HubServer, root: Root, cache: Path, then: Fault) -> None:
    hub.faults[SHARD] = [Fault(cut=70_000), then]
    publish(root, MODEL, cache)
    assert contents(folder_of(root))[SHARD] == hub.files[SHARD]
    assert [request.range for request in hub.reads(SHARD) if COMMIT not in request.path] == [None, "bytes=65536-"]


def test_killed_download_is_resumed_by_the_next_process(hub: HubServer, root: Root, cache: Path) -> None:
    hub.files |= small_model(shard_bytes=24 << 20)
    hub.faults[SHARD] = [Fault(stall=15 << 20)]
    partial = Path(root.full(f"weights/.arriving/{MODEL.folder}/{SHARD}"))
    process = publish_in_a_process(root, cache, HF_ENDPOINT=hub.endpoint)
    try:
        wait_until(lambda: partial.exists() and partial.stat().st_size >= 10 << 20, 60)
        other = folder_of(root) / SHARD.replace("1-", "2-")
        wait_until(other.exists, 60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert_no_mirror(root)
    publish(root, MODEL, cache)
    assert contents(folder_of(root)) == {
        **{name: hub.files[name] for name in PARTS},
        MANIFEST: read_weights_manifest(root, MODEL).to_json().encode(),
    }
    assert [request.range for request in hub.reads(SHARD) if COMMIT not in request.path] == [None, f"bytes={10 << 20}-"]
    assert hub.sent[other.name] == len(hub.files[other.name]), "a complete file was downloaded again"


def publish_in_a_process(
    root: Root, cache: Path, *, max_file_bytes: int = resource.RLIM_INFINITY, **variables: str
) -> subprocess.Popen[bytes]:
    """Publish in a new process that cannot write more than ``max_file_bytes`` bytes to a file."""
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({max_file_bytes},) * 2); "
        "import sys; from pathlib import Path; from caption_assets.models.mirror import publish; "
        "from caption_assets.models.variants import Variant; from caption_assets.store.root import Root; "
        "publish(Root.open(sys.argv[1]), Variant(*sys.argv[3:5]), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, root.url, str(cache), MODEL.hub_id, MODEL.revision]
    return subprocess.Popen(command, env={**os.environ, **variables}, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (Variant(HUB_ID, "deadbeef"), f"{HUB_ID} has no revision 'deadbeef': .*/{HUB_ID}/commits/main"),
        (Variant(HUB_ID, "main"), f"'main' is a name for a commit.*CAPTION_MODEL_REVISION to {COMMIT}"),
        (Variant(HUB_ID, COMMIT[:8]), f"'{COMMIT[:8]}' is a name for a commit.*CAPTION_MODEL_REVISION to {COMMIT}"),
        (Variant("someone/else", COMMIT), f"has no someone/else at {COMMIT}"),
    ],
)
def test_wrong_name_or_revision_is_an_error(
    hub: HubServer, root: Root, cache: Path, variant: Variant, message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        publish(root, variant, cache)
    assert not root.exists("weights")


def test_gated_model_is_an_error_that_asks_for_a_token(
    hub: HubServer, root: Root, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "another"
    with pytest.raises(
        WeightsError, match=rf"denies access to {HUB_ID} \(HTTP 401\): set HF_TOKEN .*accept the model.s terms"
    ) as raised:
        publish(root, MODEL, cache)
    assert TOKEN not in str(raised.value)


def test_unreachable_hub_is_an_error_without_credentials(
    hub: HubServer, root: Root, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:secret@127.0.0.1:9")
    with pytest.raises(WeightsError, match=r"from http://127.0.0.1:9 \(ConnectError.*HF_ENDPOINT") as raised:
        publish(root, MODEL, cache)
    assert "secret" not in str(raised.value)


def test_too_little_space_is_an_error_before_the_download(
    hub: HubServer, root: Root, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(root.path.rsplit("/", 1)[0])._replace(free=150_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        WeightsError, match=r"0\.2 MB of weights do not fit into .*/root/.*, which has 0\.1 MB free.*CAPTION_ROOT"
    ):
        publish(root, MODEL, cache)
    assert hub.reads(SHARD) == []


def test_full_disk_is_an_error_and_the_download_resumes(hub: HubServer, root: Root, cache: Path) -> None:
    process = publish_in_a_process(root, cache, max_file_bytes=60_000, HF_ENDPOINT=hub.endpoint)
    assert process.stderr
    message = process.stderr.read().decode()
    assert process.wait() != 0
    assert "WeightsError: cannot write" in message
    assert "File too large; free space there" in message
    assert_no_mirror(root)
    publish(root, MODEL, cache)
    assert contents(folder_of(root))[SHARD] == hub.files[SHARD]


def test_damaged_mirror_is_repaired(hub: HubServer, root: Root, cache: Path) -> None:
    manifest = publish(root, MODEL, cache)
    weights = folder_of(root) / SHARD
    (folder_of(root) / "config.json").unlink()
    flip_a_bit(weights)
    sent = dict(hub.sent)
    assert publish(root, MODEL, cache) == manifest
    assert contents(folder_of(root))["config.json"] == hub.files["config.json"]
    assert contents(folder_of(root))[SHARD] != hub.files[SHARD], "all hashes are verified only on demand"
    assert publish(root, MODEL, cache, verify=True) == manifest
    assert contents(folder_of(root))[SHARD] == hub.files[SHARD]
    again = {name for name, count in hub.sent.items() if name and count > sent[name]}
    assert again == {SHARD, "config.json"}


def test_invalid_manifest_is_rewritten_without_downloads(hub: HubServer, root: Root, cache: Path) -> None:
    manifest = publish(root, MODEL, cache)
    (folder_of(root) / MANIFEST).write_text("{")
    sent = hub.sent[SHARD]
    with pytest.raises(WeightsError, match=r"cannot use .*materialize model_weights again"):
        read_weights_manifest(root, MODEL)
    assert publish(root, MODEL, cache) == manifest
    assert hub.sent[SHARD] == sent


def test_progress_counts_every_byte(hub: HubServer, root: Root, cache: Path) -> None:
    reported: list[tuple[int, int]] = []
    manifest = publish(root, MODEL, cache, on_progress=lambda done, total: reported.append((done, total)))
    assert reported == sorted(reported)
    assert reported[-1] == (manifest.size, manifest.size)


def test_model_is_downloaded_into_the_cache_without_a_root(hub: HubServer, cache: Path) -> None:
    folder = ensure_local_from_source(MODEL, CacheConfig(cache))
    assert contents(folder) == {name: hub.files[name] for name in PARTS}
    assert not list(cache.rglob(MANIFEST))  # the files are stored once
    requests = len(hub.requests)
    assert ensure_local_from_source(MODEL, CacheConfig(cache)) == folder
    assert len(hub.requests) == requests


def test_model_of_a_run_is_found_in_the_cache(hub: HubServer, root: Root, cache: Path) -> None:
    publish(root, MODEL, cache)
    folder, requests = ensure_local(root, MODEL, cache), len(hub.requests)
    assert ensure_local_from_source(MODEL, CacheConfig(cache)) == folder
    assert len(hub.requests) == requests


def test_model_in_the_cache_is_used_by_a_run(hub: HubServer, root: Root, cache: Path) -> None:
    folder = ensure_local_from_source(MODEL, CacheConfig(cache))
    publish(root, MODEL, cache)
    assert ensure_local(root, MODEL, cache) == folder
