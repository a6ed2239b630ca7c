"""The galleries of a root: writes them anew from the stored tables, prints where they open, and serves them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from caption_assets.checks.stored_tables import StoredShard
from caption_assets.report.dashboard import update_dashboard
from caption_assets.report.gallery import gallery_path, web_address, write_gallery
from caption_assets.report.missing_previews import make_missing_previews
from caption_assets.report.shard_summary import write_summary
from caption_assets.report.terminal import require_shards
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST, TableError, stored_shards
from caption_assets.workers.sandbox import Sandbox

LOOPBACK = "127.0.0.1"
PORT = 3001


def write_galleries(
    root: Root,
    source: Root,
    stages: Sequence[str],
    shards: Sequence[str] | None,
    link_url: str | None,
    sandbox: Sandbox | None,
) -> None:
    """Write galleries and the dashboard, and print where each gallery opens. Standard error has the previews made.

    Args:
        root: the root.
        source: the folder of shards.
        stages: names of the recipe's stages, in order.
        shards: keys of the shards; None for all that have a manifest.
        link_url: URL under which the root is served; None for its own addresses.
        sandbox: decodes windows without a preview; None makes no previews.

    Raises:
        TableError: if a shard is unknown, or a table is damaged. The other galleries are written.
        StoreError: if the root cannot be read or written.
    """
    known = stored_shards(root, CLIP_MANIFEST)
    if not known:
        raise TableError(
            f"{root.url} has no tables: caption shards first (`caption-assets run`), or check CAPTION_ROOT"
        )
    require_shards(root, shards or (), known)
    failed: list[str] = []
    for shard in shards or sorted(known):
        try:
            stored = StoredShard(root, shard)
            if sandbox:
                _make_previews(stored, source, sandbox)
            write_gallery(stored, stages)
            write_summary(stored, stages)
        except TableError as error:
            failed.append(str(error))
        else:
            print(gallery_address(root, shard, link_url), flush=True)
    update_dashboard(root)
    if failed:
        more = f" ({len(failed) - 1} more like this)" if failed[1:] else ""
        raise TableError(f"{failed[0]}{more}")


def gallery_address(root: Root, shard: str, link_url: str | None) -> str:
    """The address at which a shard's gallery opens.

    It begins with ``link_url`` if there is one. Else it is the file's URL in a local root, and the object's in object
    storage, where ``caption-assets link`` signs one that opens in a browser.
    """
    path = gallery_path(shard)
    if link_url:
        return web_address(link_url, path)
    return Path(root.full(path)).absolute().as_uri() if root.is_local else root.address(path)


def serve_galleries(
    root: Root, stages: Sequence[str], web_url: str | None, host: str | None = None, port: int | None = None
) -> None:
    """Serve the galleries of a root until Ctrl-C.

    Args:
        root: the root.
        stages: names of the recipe's stages, in order.
        web_url: URL that links to galleries begin with.
        host: address to listen on; None for loopback.
        port: port to listen on; None for that of ``web_url`` if it is on loopback, else 3001.

    Raises:
        ServerError: if the address cannot be listened on.
    """
    from caption_assets.report.server import gallery_app, listen, serve, served_hosts

    host, port = host or LOOPBACK, port or _local_port(web_url) or PORT
    with listen(host, port) as listener:
        print(f"Galleries of {root.url}: {_address(host, port)} (Ctrl-C ends the server)", flush=True)
        if web_url and _local_port(web_url) not in (None, port):
            print(f"Links in Dagster's UI begin with {web_url} and do not open here", file=sys.stderr, flush=True)
        serve(gallery_app(root, stages, served_hosts(host, web_url)), listener)


@contextmanager
def serving_galleries(root: Root, stages: Sequence[str], web_url: str | None) -> Iterator[None]:
    """Serve the galleries of a root in a thread within the block, if links to them begin with an address of loopback.

    Raises:
        ServerError: if the address cannot be listened on.
    """
    from caption_assets.report.server import gallery_app, listen, served_hosts, serving

    if not (port := _local_port(web_url)):
        yield
        return
    with (
        listen(LOOPBACK, port) as listener,
        serving(gallery_app(root, stages, served_hosts(LOOPBACK, web_url)), listener),
    ):
        print(f"Galleries: {_address(LOOPBACK, port)}", flush=True)
        yield


def _make_previews(stored: StoredShard, source: Root, sandbox: Sandbox) -> None:
    result = make_missing_previews(stored.root, source, stored.shard, stored.manifest, sandbox)
    made = f"{result.made} of {result.missing} missing previews made" if result.missing else "no preview is missing"
    message = f"{stored.shard}: {made}"
    if result.errors:
        message += f"; first error: {result.errors[0]}"
    print(message, file=sys.stderr, flush=True)


def _address(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/gallery/"


def _local_port(web_url: str | None) -> int | None:
    """The port of a URL of loopback; None for others."""
    url = urlsplit(web_url or "")
    return (url.port or 80) if url.hostname in ("127.0.0.1", "localhost", "::1") else None
