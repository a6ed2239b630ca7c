"""NeMo Curator's arm of the comparison: its own preparation and model class, run in its own environment.

    python benchmarks/peer_nemo.py '{"connection": ..., "model": ..., ...}'

Clips are prepared by ``CaptionPreparationStage`` in two threads, and captioned by ``QwenVL`` in batches of 16, the
clips of a shard. A batch starts when its last clip is prepared, while the threads prepare the next ones. The commands
come through the file descriptor ``connection``: the folder of the shards, and the folder of the tables.

NeMo Curator has no sample model, so that three names are replaced: the folder of the processor, the folder of the
weights and the pixel limits.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from threading import local
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from loguru import logger
from nemo_curator.models import prompt_formatter, qwen_vl
from nemo_curator.stages.video.caption.caption_preparation import CaptionPreparationStage
from nemo_curator.tasks.video import Clip, Video, VideoTask

VARIANT = "qwen2.5"
PREPARATION_THREADS = 2
BATCH = 16


class NemoArm:
    """Captions shards with NeMo Curator.

    Args:
        model: folder of the sample model.
        pixels: arguments of its processor that limit the size of frames.
        prompt: text of the first prompt, with the literal ``user_prompt``.
        second_prompt: text that replaces it, before the first caption.
        max_output_tokens: maximum length of a caption, in tokens.
        engine: further arguments of vLLM.
    """

    def __init__(
        self,
        model: str,
        pixels: dict[str, int],
        prompt: str,
        second_prompt: str,
        max_output_tokens: int,
        engine: dict[str, Any],
    ) -> None:
        prompt_formatter.VARIANT_MAPPING[VARIANT] = model
        qwen_vl._QWEN_VARIANTS_INFO[VARIANT] = model
        qwen_vl._QWEN_VL_PIXEL_PARAMS[VARIANT] = pixels
        self._prompt = prompt
        self._qwen = qwen_vl.QwenVL(
            "/",
            VARIANT,
            BATCH,
            fp8=False,
            max_output_tokens=max_output_tokens,
            stage2_prompt_text=second_prompt,
            **engine,
        )
        self._qwen.setup()
        self._complete, self._qwen.model.generate = self._qwen.model.generate, self._counted
        self._threads = ThreadPoolExecutor(PREPARATION_THREADS)
        self._of_thread = local()
        self._counts: dict[str, int] = {}

    def caption(self, source: Path, target: Path) -> tuple[dict[str, int], dict[str, str]]:
        """Caption all shards of a folder, and write a table for each. Return numbers of tokens, and the captions."""
        answers = dict[str, str]()
        self._counts = {"prompt_tokens": 0, "cached_tokens": 0, "output_tokens": 0}
        for shard, windows in self._prepared(sorted(source.iterdir())):
            inputs = [window.llm_inputs[VARIANT] for _, window in windows]
            captions = self._qwen.generate(inputs, generate_stage2_caption=True, batch_size=BATCH)
            rows = [
                {
                    "clip": Path(clip.source_video).name,
                    "start": window.start_frame,
                    "end": window.end_frame,
                    "caption": caption,
                }
                for (clip, window), caption in zip(windows, captions, strict=True)
            ]
            pq.write_table(pa.Table.from_pylist(rows), target / f"{shard.name}.parquet")
            answers |= {f"{shard.name}/{row['clip']}": row["caption"] for row in rows}
        return self._counts, answers

    def clear_caches(self) -> None:
        """Remove the videos from the caches of vLLM."""
        self._qwen.model.reset_mm_cache()
        self._qwen.model.reset_prefix_cache()
        self._qwen.model.llm_engine.reset_encoder_cache()

    def _prepared(self, shards: list[Path]) -> Iterator[tuple[Path, list[tuple[Any, Any]]]]:
        """The windows of each shard, with their clips. The threads are at most two shards ahead."""
        waiting = []
        for shard in shards:
            waiting.append((shard, [self._threads.submit(self._prepare, file) for file in sorted(shard.iterdir())]))
            if len(waiting) > 2:
                yield self._finished(*waiting.pop(0))
        for pending in waiting:
            yield self._finished(*pending)

    def _finished(self, shard: Path, clips: list[Any]) -> tuple[Path, list[tuple[Any, Any]]]:
        return shard, [(clip, window) for future in clips for clip in [future.result()] for window in clip.windows]

    def _prepare(self, file: Path) -> Any:
        """A clip with its windows. Each thread has a stage of its own."""
        if not hasattr(self._of_thread, "stage"):
            stage = CaptionPreparationStage(model_variant=VARIANT, prompt_text=self._prompt, generate_previews=False)
            stage.setup()
            self._of_thread.stage = stage
        clip = Clip(uuid=uuid4(), source_video=str(file), span=(0.0, 0.0), buffer=file.read_bytes())
        self._of_thread.stage.process(VideoTask(dataset_name="peer", data=Video(file, clips=[clip])))
        if clip.errors or not clip.windows:
            raise RuntimeError(f"{file} was not prepared: {clip.errors}")
        return clip

    def _counted(self, *args: Any, **options: Any) -> Any:
        """The answers of vLLM, whose tokens are counted."""
        outputs = self._complete(*args, **options)
        for output in outputs:
            self._counts["prompt_tokens"] += len(output.prompt_token_ids)
            self._counts["cached_tokens"] += output.num_cached_tokens or 0
            self._counts["output_tokens"] += len(output.outputs[0].token_ids)
        return outputs


def main() -> None:
    """Run commands until the connection ends."""
    options = json.loads(sys.argv[1])
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    with Connection(options.pop("connection")) as commands:
        arm = NemoArm(**options)
        commands.send("ready")
        while (command := commands.recv()) is not None:
            commands.send(arm.caption(*map(Path, command)))
            arm.clear_caches()
            commands.send("idle")


if __name__ == "__main__":
    main()
