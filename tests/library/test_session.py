from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pandas
import pytest

import caption_assets
from caption_assets.captioning.engine import EngineError
from caption_assets.captioning.request import Completion, Request
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.library.captioner import Captioner, SampleModelWarning
from caption_assets.library.rows import WindowCaption
from caption_assets.settings import SettingsError
from tests.captioning.fake_engine import FakeEngine, start_fake_engine
from tests.library.fake_captioner import FakeCaptioner
from tests.videos import moving_video

pytestmark = pytest.mark.fast

STAGES = ["stage1_captions", "stage2_captions", "attributes", "alignment", "short"]


@pytest.fixture
def captioner(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCaptioner]:
    monkeypatch.setenv("CAPTION_WINDOW_SIZE", "24")
    monkeypatch.setenv("CAPTION_REMAINDER_THRESHOLD", "12")
    with pytest.warns(SampleModelWarning, match="CAPTION_MODEL"):
        captioner = FakeCaptioner()
    with captioner:
        yield captioner


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two clips of two windows each; a file that is not a video between them."""
    folder = tmp_path_factory.mktemp("clips")
    paths = [folder / name for name in ("b.mp4", "notes.txt", "a.mp4")]
    for number, path in enumerate(paths):
        path.write_bytes(moving_video(48, size=(64 + 16 * number, 64)) if path.suffix == ".mp4" else b"text")
    return paths


def test_rows_have_the_order_of_paths_windows_and_stages(captioner: FakeCaptioner, clips: list[Path]) -> None:
    rows = list(captioner.caption(clips))
    assert [(row.clip, row.window, row.stage) for row in rows] == [
        *((str(clips[0]), window, stage) for window in (0, 1) for stage in STAGES),
        (str(clips[1]), None, None),
        *((str(clips[2]), window, stage) for window in (0, 1) for stage in STAGES),
    ]
    assert {row.status for row in rows if row.clip != str(clips[1])} == {"ok"}
    assert rows[0].start_seconds == 0.0
    assert rows[0].end_seconds == pytest.approx(24 / 25)


def test_order_does_not_depend_on_the_engine(
    captioner: FakeCaptioner, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = threading.Event()

    class SlowFirst(FakeEngine):
        async def complete(self, request: Request) -> Completion:
            if not first.is_set():
                first.set()
                await asyncio.sleep(0.5)
            return await super().complete(request)

    captioner.engine = SlowFirst()
    rows = list(captioner.caption([clips[0], clips[2]], stage="stage1_captions"))
    assert [(row.clip, row.window) for row in rows] == [(str(clip), n) for clip in (clips[0], clips[2]) for n in (0, 1)]


def test_unreadable_clip_has_one_row_with_the_reason(captioner: FakeCaptioner, clips: list[Path]) -> None:
    rows = list(captioner.caption([clips[1], "/nowhere.mp4"]))
    assert [(row.status, row.error_kind) for row in rows] == [("failed", "text"), ("failed", "missing")]
    assert "not a video" in str(rows[0].error)
    assert captioner.starts == 0  # no engine for them


def test_calls_share_an_engine(captioner: FakeCaptioner, clips: list[Path]) -> None:
    assert len(list(captioner.caption(clips[0]))) == len(list(captioner.caption(str(clips[2])))) == 2 * len(STAGES)
    assert captioner.starts == 1


def test_no_paths_give_no_rows(captioner: FakeCaptioner) -> None:
    assert list(captioner.caption([])) == []


def test_stage_captions_only_what_it_needs(captioner: FakeCaptioner, clips: list[Path]) -> None:
    asked: Counter[str] = Counter()
    captioner.engine = FakeEngine(lambda request: asked.update([request.prompt[:8]]))
    rows = list(captioner.caption(clips[0], stage="stage2_captions"))
    assert [(row.window, row.stage) for row in rows] == [(0, "stage2_captions"), (1, "stage2_captions")]
    assert asked.total() == 4  # two stages of two windows


def test_unknown_stage_is_an_error_with_the_stages(captioner: FakeCaptioner, clips: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"no stage 'attributs': use stage1_captions, .*attributes"):
        captioner.caption(clips[0], stage="attributs")


def test_closed_iterator_stops_its_call_but_not_the_engine(captioner: FakeCaptioner, clips: list[Path]) -> None:
    captioner.engine = FakeEngine(seconds=0.05)
    rows = captioner.caption(clips)
    next(rows)
    (call,) = captioner._session._tasks
    rows.close()  # type: ignore[attr-defined]
    while not call.done():
        time.sleep(0.01)
    assert call.cancelled()
    assert len(list(captioner.caption(clips[0]))) == 2 * len(STAGES)
    assert captioner.starts == 1


def test_works_within_a_running_event_loop(captioner: FakeCaptioner, clips: list[Path]) -> None:
    async def cell() -> int:
        return len(list(captioner.caption(clips[0])))

    assert asyncio.run(cell()) == 2 * len(STAGES)


def test_closed_captioner_is_an_error(captioner: FakeCaptioner, clips: list[Path]) -> None:
    rows = captioner.caption(clips[0])
    captioner.close()
    captioner.close()
    with pytest.raises(ValueError, match="is closed"):
        captioner.caption(clips[0])
    with pytest.raises(RuntimeError, match="was closed during this call"):
        next(rows)


def test_engine_that_does_not_start_is_an_error(captioner: FakeCaptioner, clips: list[Path]) -> None:
    @asynccontextmanager
    async def broken(engine: EngineSupervisor) -> AsyncIterator[EngineSupervisor]:
        if not engine.crashes:
            raise EngineError("no such device: use another")
        yield engine

    captioner._session._open_engine = partial(broken, EngineSupervisor(partial(start_fake_engine, FakeEngine())))
    with pytest.raises(EngineError, match="no such device"):
        list(captioner.caption(clips))


def test_closing_leaves_no_thread(clips: list[Path]) -> None:
    before = threading.active_count()
    with pytest.warns(SampleModelWarning), FakeCaptioner() as captioner:
        assert list(captioner.caption(clips[0]))
    assert threading.active_count() <= before + 1  # a reader of the clip ends by itself


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "qwen9"}, "CAPTION_MODEL='qwen9': unknown model"),
        ({"recipe": "nowhere"}, "CAPTION_RECIPE='nowhere'"),
        ({"recipe": Path("/nowhere.yaml")}, "CAPTION_RECIPE='/nowhere.yaml'"),
    ],
)
def test_wrong_recipe_or_model_is_an_error(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Captioner(**arguments)  # type: ignore[arg-type]


def test_recipe_with_a_second_model_is_an_error(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "stages:\n- {name: one, prompt: Describe.}\n"
        "- {name: two, prompt: 'Shorten {one}', video: false, model: qwen3-4b}\n"
    )
    with pytest.raises(Exception, match="stage two of the recipe 'recipe' has a model of its own"):
        Captioner(recipe)


def test_caption_returns_rows_that_pandas_takes(clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caption_assets.library.captioner.Captioner", FakeCaptioner)
    with pytest.warns(SampleModelWarning):
        frame = pandas.DataFrame(caption_assets.caption(clips[:2], recipe="general"))
    assert list(frame.columns) == list(WindowCaption.__slots__)
    assert frame["stage"].fillna("").tolist() == ["stage1_captions", "stage2_captions", ""]
    assert frame["status"].tolist() == ["ok", "ok", "failed"]
