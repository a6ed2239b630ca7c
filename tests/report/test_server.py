"""Tests of the server of galleries, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path

import httpx2
import pyarrow.parquet as pq
import pytest

from caption_assets.checks.stored_tables import StoredShard
from caption_assets.report.dashboard import update_dashboard
from caption_assets.report.gallery import write_gallery
from caption_assets.report.server import ServerError, listen, served_hosts
from caption_assets.report.shard_summary import write_summary
from caption_assets.store.previews import Preview, write_preview
from caption_assets.store.root import Root
from tests.report.served import served
from tests.report.windows import SHARD, broken, captioned, failed, publish, window
from tests.stages import STAGES

NAMES = [stage.name for stage in STAGES]
ODD = "-odd_name.x..y"
CAR, VAN = window("car.mp4"), window("van.mp4")


def publish_shard(root: Root, shard: str) -> None:
    """Publish a shard of three rows: one with captions, one that failed and an unreadable clip."""
    rows = [CAR, VAN, broken("broken.mp4")]
    answers = [captioned(CAR, "A car."), failed(VAN), failed(rows[2], "damaged", "it is cut off")]
    publish(root, rows, answers, answers, shard=shard)
    write_preview(root, shard, CAR.window_id, Preview(b"jpeg", 6))
    stored = StoredShard(root, shard)
    write_gallery(stored, NAMES)
    write_summary(stored, NAMES)


def status_of(client: httpx2.Client, path: str) -> int:
    """The status of a request for a path exactly as given: clients normalize dots."""
    connection = HTTPConnection("127.0.0.1", client.base_url.port, timeout=10)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    folder = tmp_path_factory.mktemp("root")
    root = Root.open(str(folder))
    for shard in (SHARD, ODD):
        publish_shard(root, shard)
    (folder / "secret.html").write_text("secret")
    (folder / "gallery" / "outside").mkdir()
    (folder / "gallery" / "outside" / "index.html").symlink_to(folder / "secret.html")
    (folder / "gallery" / SHARD / "previews" / ".a.jpg.tmp").write_text("unfinished")
    (folder / "gallery" / SHARD / "previews" / "notes.txt").write_text("notes")
    return root


@pytest.fixture(scope="module")
def client(root: Root) -> Iterator[httpx2.Client]:
    with served(root) as client:
        yield client


@pytest.mark.fast
@pytest.mark.parametrize("shard", [SHARD, ODD])
def test_stored_link_opens_the_gallery(client: httpx2.Client, root: Root, shard: str) -> None:
    response = client.get(f"/gallery/{shard}/index.html")
    assert response.status_code == 200
    assert response.content == Path(root.full(f"gallery/{shard}/index.html")).read_bytes()
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.fast
@pytest.mark.parametrize("path", ["/", "/gallery", "/gallery/", "/gallery/index.html"])
def test_dashboard_is_rendered_where_the_root_has_none(client: httpx2.Client, path: str) -> None:
    response = client.get(path, follow_redirects=True)
    assert response.url.path == "/gallery/"
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert all(f'["{shard}",3,1,1,1,' in response.text for shard in (SHARD, ODD))


@pytest.mark.fast
def test_stored_dashboard_is_served(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    publish_shard(root, SHARD)
    update_dashboard(root)
    with served(root) as client:
        response = client.get("/gallery/")
        assert response.content == root.read("gallery/index.html")
        assert response.headers["cache-control"] == "no-cache"
        assert client.get("/gallery/", headers={"If-None-Match": response.headers["etag"]}).status_code == 304


@pytest.mark.fast
def test_captions_are_searched(client: httpx2.Client) -> None:
    response = client.get("/gallery/search", params={"q": "CAR"})
    assert response.headers["cache-control"] == "no-store"
    hit = {"clip": "car.mp4", "position": "window 0, 0:00.0 to 0:04.0", "caption": "A car."}
    places = [(shard, stage) for stage in ("stage 1", "stage 2") for shard in sorted((SHARD, ODD))]
    hits = [{"shard": shard, "stage": stage, **hit} for shard, stage in places]
    assert response.json() == {"hits": hits, "has_more": False, "unsearched": 0}


@pytest.mark.fast
@pytest.mark.parametrize("query", ["", "%20", "x" * 201])
def test_unusable_search_is_refused(client: httpx2.Client, query: str) -> None:
    response = client.get(f"/gallery/search?q={query}")
    assert (response.status_code, response.headers["x-content-type-options"]) == (400, "nosniff")
    assert response.text.startswith("the search has")


@pytest.mark.fast
@pytest.mark.parametrize("path", [f"/gallery/{ODD}", f"/gallery/{ODD}/"])
def test_short_address_leads_to_the_gallery(client: httpx2.Client, path: str) -> None:
    assert client.get(path, follow_redirects=True).url.path == f"/gallery/{ODD}/index.html"


@pytest.mark.fast
def test_preview_may_be_cached(client: httpx2.Client) -> None:
    response = client.get(f"/gallery/{SHARD}/previews/{CAR.window_id}.6.jpg")
    assert (response.content, response.headers["content-type"]) == (b"jpeg", "image/jpeg")
    assert response.headers["cache-control"] == "private, max-age=86400"


@pytest.mark.fast
def test_linked_table_is_served(client: httpx2.Client) -> None:
    response = client.get(f"/clip_manifest/shard={SHARD}/manifest.parquet")
    assert pq.read_table(BytesIO(response.content), partitioning=None).num_rows == 3


@pytest.mark.fast
def test_head_ranges_and_unchanged_pages_are_answered(client: httpx2.Client) -> None:
    path = f"/gallery/{SHARD}/index.html"
    whole, head = client.get(path), client.head(path)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(whole.content)))
    part = client.get(path, headers={"Range": "bytes=0-8"})
    assert (part.status_code, part.content) == (206, b"<!doctype")
    again = client.get(path, headers={"If-None-Match": whole.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.fast
@pytest.mark.parametrize(
    "path",
    [
        "/secret.html",
        "/gallery/../secret.html",
        "/gallery/..%2fsecret.html",
        "/gallery/../index.html",
        "/gallery/%2e%2e/index.html",
        "/gallery/..%2f..%2fetc/index.html",
        "/gallery/%00/index.html",
        "/gallery/http:evil.example",
        "/gallery//evil.example/",
        "/gallery/outside/index.html",
        f"/gallery/{SHARD}/previews/.a.jpg.tmp",
        f"/gallery/{SHARD}/previews/notes.txt",
        f"/gallery/{SHARD}/previews/..%2findex.html",
        f"/gallery/{SHARD}/previews/",
        f"/stage1_captions/shard={SHARD}/captions.parquet",
        "/clip_manifest/",
        "/clip_manifest/shard=../manifest.parquet",
        "//127.0.0.1/gallery/",
        "/gallery/missing/index.html",
    ],
)
def test_other_paths_are_not_found(client: httpx2.Client, path: str) -> None:
    assert status_of(client, path) == 404


@pytest.mark.fast
def test_missing_gallery_names_the_remedy(client: httpx2.Client) -> None:
    assert "write it with `caption-assets gallery missing`" in client.get("/gallery/missing/index.html").text


@pytest.mark.fast
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_reading_is_allowed(client: httpx2.Client, method: str) -> None:
    assert client.request(method, f"/gallery/{SHARD}/index.html").status_code == 405


@pytest.mark.fast
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:3001", 200),
        ("[::1]:3001", 200),
        ("captions.example.com", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("captions.example.com.evil.example", 400),
        ("", 400),
    ],
)
def test_only_known_hosts_are_answered(root: Root, host: str, status: int) -> None:
    with served(root, *served_hosts("0.0.0.0", "https://captions.example.com/")) as client:
        assert client.get("/gallery/", headers={"Host": host}).status_code == status


@pytest.mark.fast
def test_port_in_use_names_the_remedy() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port} of 127.0.0.1 is in use by process .*CAPTION_LINK_URL=http"):
            listen("127.0.0.1", port)


@pytest.mark.store
def test_galleries_in_object_storage_are_streamed(s3_url: str) -> None:
    root = Root.open(s3_url)
    publish_shard(root, SHARD)
    with served(root) as client:
        path = f"/gallery/{SHARD}/index.html"
        page = client.get(path)
        assert page.content == root.read(path[1:])
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert client.head(path).headers["content-length"] == str(len(page.content))
        assert client.get(path, headers={"If-None-Match": page.headers["etag"]}).status_code == 304
        assert client.get("/gallery/missing/index.html").status_code == 404
        assert client.get(f"/clip_manifest/shard={SHARD}/manifest.parquet").status_code == 200
        assert client.get(f"/gallery/{SHARD}/previews/{CAR.window_id}.6.jpg").content == b"jpeg"
        assert f'["{SHARD}",3,1,1,1,' in client.get("/gallery/").text
        update_dashboard(root)
        assert client.get("/gallery/").content == root.read("gallery/index.html")
        assert len(client.get("/gallery/search?q=car").json()["hits"]) == 2
