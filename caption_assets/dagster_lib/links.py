"""How the UI points to what lies in the root."""

from __future__ import annotations

from urllib.parse import quote

import dagster as dg

from caption_assets.store.root import Root


def link(root: Root, path: str, link_url: str | None) -> dg.MetadataValue:
    """A link to an object that opens in a browser if the root's contents have a web address, else its path."""
    if link_url is None:
        return dg.MetadataValue.path(root.address(path))
    return dg.MetadataValue.url(f"{link_url.rstrip('/')}/{quote(path)}")
