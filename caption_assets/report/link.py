"""Print an address under which a shard's gallery opens in a browser, without access to the bucket, for some hours.

python -m caption_assets.report.link ROOT SHARD [--hours 12] [--profile NAME]
"""

from __future__ import annotations

import argparse
import sys

from caption_assets.errors import CaptionAssetsError
from caption_assets.report.gallery import gallery_path
from caption_assets.store.access import Access
from caption_assets.store.root import Root


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="a folder or s3://bucket/prefix, as CAPTION_ROOT")
    parser.add_argument("shard", help="its key")
    parser.add_argument("--profile", help="AWS profile, as CAPTION_ROOT_PROFILE (default: the standard AWS variables)")
    parser.add_argument("--hours", type=float, default=12, help="for which it is valid (default: 12)")
    options = parser.parse_args()
    try:
        print(gallery_link(Root.open(options.root, Access(profile=options.profile)), options.shard, options.hours))
    except CaptionAssetsError as error:
        sys.exit(f"error: {error}")


def gallery_link(root: Root, shard: str, hours: float) -> str:
    """The address: a file's, or one signed with the caller's own key, which is a secret as long as it is valid.

    Raises:
        StoreError: if there is no gallery, or the store cannot sign.
    """
    return root.signed(gallery_path(shard), hours * 3600)


if __name__ == "__main__":
    main()
