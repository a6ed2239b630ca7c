"""Fixtures for all tests: one vLLM engine a session, the sample shards, Dagster instances, a browser page."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg
import pytest
from filelock import FileLock
from huggingface_hub import constants
from hypothesis import settings as hypothesis_settings

from caption_assets.captioning.captioner import caption
from caption_assets.captioning.decoding import SandboxDecoder
from caption_assets.captioning.engine import CaptionEngine, EngineConfig, start_engine
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.stages import Stage
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.window_job import WindowJob
from caption_assets.models.cache import ensure_local
from caption_assets.models.mirror import publish
from caption_assets.sample.shards import ANSWERS, write_shards
from caption_assets.store.root import Root
from caption_assets.workers.sandbox import Sandbox
from scripts.setup_system import BROWSERS
from tests.models.hub_server import TOKEN, HubServer, small_model
from tests.sqlite import quick_sqlite
from tests.stages import STAGES
from tests.store.server import s3_server, s3_url

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["s3_server", "s3_url"]  # fixtures, for all folders

for name in [name for name in os.environ if name.startswith("CAPTION_")]:
    del os.environ[name]  # tests start from the defaults, not from the shell's settings

# Processes that a shell starts in the background ignore these signals, and so do their children.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)

T = TypeVar("T")
RunAsync = Callable[[Coroutine[Any, Any, T]], T]
Truth = dict[str, dict[str, list[dict[str, str]]]]
"""Correct answers by shard, clip, window and stage."""

SANDBOX = Sandbox()
"""Sandbox of the session. Its workers start when they are first needed."""

# A slow example is not a failure: the machine may be busy.
hypothesis_settings.register_profile("project", deadline=None, max_examples=100)
hypothesis_settings.load_profile("project")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--s3-server", choices=("moto", "rgw"), default="moto", help="S3 server of the store lane")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Measure the coverage of the fast lane alone: the other lanes spend their time in other processes."""
    for item in items:
        if item.get_closest_marker("fast") is None:
            item.add_marker(pytest.mark.no_cover)


@pytest.fixture(scope="session")
def sample_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two sample shards below ``shards/``. Read-only: all workers of pytest-xdist share it."""
    session = tmp_path_factory.getbasetemp()
    folder = (session.parent if "PYTEST_XDIST_WORKER" in os.environ else session) / "sample"
    with FileLock(f"{folder}.lock"):
        write_shards(folder / "shards")
    return folder


@pytest.fixture(scope="session")
def truth(sample_data: Path) -> Truth:
    """The correct answers about the sample shards."""
    return json.loads((sample_data / ANSWERS).read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model, downloaded through mirror and cache as in a run."""
    folder = tmp_path_factory.mktemp("model")
    root = Root.open(str(folder / "root"))
    publish(root, Recipe().variant, folder / "cache")
    return ensure_local(root, Recipe().variant, folder / "cache")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A model hub on loopback with a small model; this process's client is configured to use it."""
    with HubServer(small_model()).running() as server:
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 16_384)
        monkeypatch.setattr("caption_assets.models.hub.DELAYS_SECONDS", (0.01, 0.02))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture(scope="session")
def event_loop_runner() -> Iterator[asyncio.Runner]:
    """The event loop of the session's engine."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def engine(event_loop_runner: asyncio.Runner, model_folder: Path) -> Iterator[CaptionEngine]:
    """The session's one vLLM engine, loaded with the sample model. It counts the work of its vision encoder."""
    counting = EngineConfig(engine_args={"enable_mm_processor_stats": True})
    starting = start_engine(model_folder, Recipe(), counting)
    yield event_loop_runner.run(starting.__aenter__())
    event_loop_runner.run(starting.__aexit__(None, None, None))


@pytest.fixture(scope="session")
def supervisor(engine: CaptionEngine, event_loop_runner: asyncio.Runner) -> EngineSupervisor:
    """A supervisor of the session's engine, which it neither starts nor stops."""

    @asynccontextmanager
    async def running() -> AsyncIterator[CaptionEngine]:
        yield engine

    return event_loop_runner.run(EngineSupervisor(running).__aenter__())


async def caption_all(
    supervisor: EngineSupervisor,
    recipe: Recipe,
    jobs: Iterable[WindowJob],
    *,
    stages: tuple[Stage, ...] = STAGES,
    sandbox: Sandbox = SANDBOX,
) -> list[WindowJob]:
    """Finished copies of the jobs, in their order, with the recipe's stages of these names."""
    wanted = tuple(recipe.graph.stage(stage.name) for stage in stages)
    copies: list[WindowJob] = []
    finished: list[WindowJob] = []
    for number, job in enumerate(jobs):
        copies.append(replace(job, stages=wanted, number=number, rows=dict(job.rows)))
        copies[-1].set_previous(copies[-2] if number else None)

    async def stream() -> AsyncIterator[WindowJob]:
        for job in copies:
            yield job

    async def keep(job: WindowJob) -> None:
        finished.append(job)

    with SandboxDecoder(sandbox) as decoder:
        await caption(supervisor, recipe, decoder, stream(), keep)
    assert sorted(job.number for job in finished) == list(range(len(copies)))
    return copies


@pytest.fixture(scope="session")
def run_async(event_loop_runner: asyncio.Runner) -> RunAsync[Any]:
    """Runs a coroutine on the engine's loop and returns its result."""
    return event_loop_runner.run


MEMORY = Path("/dev/shm")
"""A file system in memory, if there is one: SQLite stores an event there in a fifth of the time."""


@pytest.fixture(scope="session", autouse=True)
def engine_sockets() -> Iterator[None]:
    """A folder for the sockets of vLLM's processes, which killed processes leave behind. Their paths must be short."""
    with TemporaryDirectory(prefix="engines-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_RPC_BASE_PATH", folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def sqlite() -> Iterator[None]:
    """Makes Dagster's SQLite storages in this process faster."""
    with quick_sqlite():
        yield


@pytest.fixture(scope="session")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Dagster instance on SQLite with empty databases. Read-only."""
    folder = tmp_path_factory.mktemp("dagster")
    with dg.instance_for_test(temp_dir=str(folder)):
        return folder


@pytest.fixture
def instance(empty_home: Path) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance with databases in files: schedules need a persistent instance."""
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        shutil.copytree(empty_home, folder, dirs_exist_ok=True)
        with dg.instance_for_test(temp_dir=folder) as instance:
            yield instance


@pytest.fixture
def page() -> Iterator[Page]:
    """A page in Debian's Chromium; Playwright's own build is not downloaded."""
    from playwright.sync_api import sync_playwright  # here, so that only browser tests load it

    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert chromium, "Chromium is not installed: run `make system`, or install it yourself"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-background-networking", "--disable-gpu"]
        )
        yield browser.new_page(viewport={"width": 1500, "height": 700})
        browser.close()
