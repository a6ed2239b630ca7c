"""A captioner on a fake engine."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.library.captioner import Captioner
from tests.captioning.fake_engine import FakeEngine, start_fake_engine


class FakeCaptioner(Captioner):
    """A captioner on a fake engine."""

    engine = FakeEngine()
    starts = 0

    def _open_engine(self) -> AbstractAsyncContextManager[EngineSupervisor]:
        def count() -> None:
            self.starts += 1

        return EngineSupervisor(lambda: start_fake_engine(self.engine, count), max_restarts=0)
