"""Commands that write, serve and link the galleries of shards."""

from typing import Annotated

from typer import Argument, BadParameter, Option

from caption_assets.cli.app import READING, Profile, app


@app.command(rich_help_panel=READING)
def gallery(
    shards: Annotated[list[str] | None, Argument(metavar="SHARD", help="Shard keys.")] = None,
    every: Annotated[bool, Option("--all", help="Write the galleries of all shards that have a manifest.")] = False,
    previews: Annotated[
        bool, Option("--previews", help="Make missing previews first. Reads and decodes the clips of their windows.")
    ] = False,
    serve: Annotated[bool, Option("--serve", help="Serve the galleries until Ctrl-C.")] = False,
    host: Annotated[
        str | None, Option(help="Address to listen on; 0.0.0.0 for all. Default: 127.0.0.1, for this machine alone.")
    ] = None,
    port: Annotated[
        int | None,
        Option(min=1, max=65535, help="Port to listen on. Default: that of CAPTION_LINK_URL if it is local, or 3001."),
    ] = None,
) -> None:
    """Write the galleries of shards anew from the stored tables, and print where they open; or serve all galleries.

    The dashboard of all shards is made anew with them. Reads the tables in CAPTION_ROOT. It needs no Dagster instance
    and no engine.

    **Examples**

    `caption-assets gallery --serve` serves the galleries of all shards.

    `caption-assets gallery --all --previews` makes the previews that are missing, and writes all galleries.
    """
    if not (shards or every or serve):
        raise BadParameter("give shard keys, --all or --serve")
    if serve and (shards or every or previews):
        raise BadParameter("--serve serves all galleries: write them first, without --serve")
    from caption_assets.report.galleries import serve_galleries, write_galleries
    from caption_assets.settings import load_settings
    from caption_assets.store.root import Root
    from caption_assets.workers.sandbox import Sandbox

    settings = load_settings()
    storage, stages = settings.storage, [stage.name for stage in settings.caption_recipe.stages]
    root = Root.open(storage.root_url, storage.root_access)
    if serve:
        serve_galleries(root, stages, settings.web_url, host, port)
        return
    source = Root.open(storage.source_url, storage.source_access)
    with Sandbox(settings.decode, settings.decode_workers) as sandbox:
        write_galleries(root, source, stages, shards, settings.link_url, sandbox if previews else None)


@app.command(rich_help_panel=READING)
def link(
    root: Annotated[str, Argument(metavar="ROOT", help="A folder or s3://bucket/prefix, as in CAPTION_ROOT.")],
    shard: Annotated[
        str | None,
        Argument(metavar="SHARD", help="Shard key. Without one, the link is the dashboard's."),
    ] = None,
    hours: Annotated[float, Option(help="Lifetime of the link, in hours.")] = 12,
    profile: Profile = None,
) -> None:
    """Print a link to a shard's gallery, or to the dashboard, that opens without access to the bucket.

    The link is signed with your own key: treat it as a secret until it expires. For a local root it is the file's URL.

    **Example**

    `caption-assets link s3://bucket/captions my-shard --hours 24`
    """
    from caption_assets.report.dashboard import PAGE
    from caption_assets.report.gallery import gallery_path
    from caption_assets.store.access import Access
    from caption_assets.store.root import Root

    print(Root.open(root, Access(profile=profile)).signed_url(gallery_path(shard) if shard else PAGE, hours * 3600))
