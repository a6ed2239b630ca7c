"""The class ``QwenVL``, which captions videos on an engine in a thread of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caption_assets.captioning.engine import RESERVED, EngineConfig, UnknownArgument, start_engine
from caption_assets.captioning.library_logs import log_libraries
from caption_assets.captioning.loop_thread import LoopThread
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.models.snapshot import Snapshot
from caption_assets.models.variants import find_variant
from caption_assets.qwen_vl.call import Call
from caption_assets.store.root import Root

DEFAULT_STAGE2 = "Please refine this caption: "
"""The reference's text before the stage-1 caption, used if none is given."""
OWN_SETTINGS = ("tensor_parallel_size", "data_parallel_size")
"""vLLM's arguments that are settings of ``EngineConfig``."""


class QwenVL:
    """Captions videos with Qwen-VL on vLLM.

    The arguments are those of NeMo Curator's class before and after the removal of ``model_does_preprocess``. Their
    positions are those before it: give arguments after ``max_output_tokens`` by keyword.

    Args:
        model_dir: folder with the model in ``<organization>/<name>``, such as ``Qwen/Qwen2.5-VL-7B-Instruct``.
        model_variant: key of a model, such as ``qwen``, ``qwen2.5``, ``qwen3`` or ``sample``.
        caption_batch_size: ignored, accepted for compatibility: the engine batches requests itself.
        fp8: quantize the language model to FP8. Needs a GPU.
        max_output_tokens: maximum length of a caption, in tokens.
        model_does_preprocess: if True, all frames are scaled to the model's pixel limits, by the rule of Qwen's
            processor. If False, frames with sides in multiples of the model's patch factor are not enlarged; others are
            scaled all the same. Values are rescaled and normalized in both cases.
        disable_mmcache: do not cache preprocessed videos, so that stage 2 sends them again.
        stage2_prompt_text: text before the stage-1 caption in the stage-2 prompt.
        verbose: log more than vLLM's warnings.
        vllm_kwargs: further engine arguments of vLLM.

    Raises:
        UnknownModel: if there is no such variant.
        TypeError: if vLLM's arguments include one that this class sets itself, or ``disable_mmcache`` is no bool.
    """

    def __init__(
        self,
        model_dir: str,
        model_variant: str,
        caption_batch_size: int,
        fp8: bool = True,
        max_output_tokens: int = 512,
        model_does_preprocess: bool = False,
        disable_mmcache: bool = False,
        stage2_prompt_text: str | None = None,
        verbose: bool = False,
        **vllm_kwargs: Any,
    ) -> None:
        if not isinstance(disable_mmcache, bool):
            raise TypeError(
                f"disable_mmcache must be a bool, not {disable_mmcache!r}: give arguments after max_output_tokens by "
                "keyword"
            )
        if reserved := sorted(vllm_kwargs.keys() & RESERVED - {*OWN_SETTINGS, "dtype"}):
            raise TypeError(f"QwenVL() sets vLLM's {', '.join(reserved)} itself: remove it from the arguments")
        self.model_dir = model_dir
        self.model_variant = model_variant
        self.caption_batch_size = caption_batch_size
        self.fp8 = fp8
        self.max_output_tokens = max_output_tokens
        self.model_does_preprocess = model_does_preprocess
        self.disable_mmcache = disable_mmcache
        self.stage2_prompt = stage2_prompt_text or DEFAULT_STAGE2
        self.verbose = verbose
        self.vllm_kwargs = vllm_kwargs
        self._variant = find_variant(model_variant)
        self._snapshot = _snapshot(model_dir, model_variant)
        self._loop: LoopThread | None = None
        self._supervisor: EngineSupervisor | None = None

    @property
    def model_id_names(self) -> list[str]:
        """Hub ids of the models."""
        return [self._variant.hub_id]

    @property
    def weight_file(self) -> str:
        """Folder of the model's files."""
        return str(self._snapshot.path)

    @classmethod
    def download_weights_on_node(
        cls, model_dir: str, variant: str = "qwen", *, model_variant: str | None = None
    ) -> None:
        """Download a model into ``model_dir``. The files that are there already are verified instead.

        Args:
            model_dir: the folder.
            variant: key of the model.
            model_variant: another name of ``variant``.

        Raises:
            WeightsError: if the download fails, the disk is full, or a file is not the published one.
        """
        Path(model_dir).mkdir(parents=True, exist_ok=True)
        _snapshot(model_dir, model_variant or variant).download()

    def setup(self) -> None:
        """Start the engine.

        Raises:
            ImportError: if vLLM is not installed.
            WeightsError: if ``model_dir`` does not contain the weights, or a file is not the published one.
            TypeError: if vLLM has no engine argument of a given name.
            EngineError: if the engine does not start.
        """
        if importlib.util.find_spec("vllm") is None:
            raise ImportError(
                "vLLM is not installed: pip install 'caption-assets[gpu]', or [cpu] on a machine without one"
            )
        self._snapshot.verify()
        if self.verbose:
            log_libraries()  # vLLM logs its statistics at level INFO
        recipe, config = self._engine_settings()
        supervisor = EngineSupervisor(lambda: start_engine(self._snapshot.path, recipe, config))
        loop = LoopThread("qwen-vl")
        try:
            loop.run(supervisor.__aenter__())
        except UnknownArgument as error:
            loop.stop()
            raise TypeError(f"QwenVL() got an unexpected keyword argument: {error.problem}") from error
        except BaseException:
            loop.stop()
            raise
        self._loop, self._supervisor = loop, supervisor

    def _engine_settings(self) -> tuple[Recipe, EngineConfig]:
        arguments = {"disable_log_stats": not self.verbose, **self.vllm_kwargs}
        recipe = Recipe(variant=self._variant, fp8=self.fp8, dtype=arguments.pop("dtype", None))
        config = EngineConfig(
            processor_cache_gb=0.0 if self.disable_mmcache else None,
            **{name: arguments.pop(name) for name in OWN_SETTINGS if name in arguments},
            engine_args=arguments,
        )
        return recipe, config

    def close(self) -> None:
        """Shut the engine down. Otherwise it ends with the process."""
        if self._loop and self._supervisor:
            self._loop.run(self._supervisor.__aexit__(None, None, None))
            self._loop.stop()
        self._loop = self._supervisor = None

    def generate(
        self,
        videos: Sequence[Mapping[str, Any]],
        generate_stage2_caption: bool = False,
        batch_size: int = 16,
        *,
        float_maximum: float = 255.0,
    ) -> list[str]:
        """Caption videos.

        Args:
            videos: a mapping for each video, with ``prompt``, rendered with the model's chat template, and
                ``multi_modal_data``, whose ``video`` is an array or tensor of (frames, channels, height, width) or
                (frames, height, width, channels) with integers from 0 to 255 or floats from 0 to ``float_maximum``, or
                a pair of that and a mapping with its ``fps``.
            generate_stage2_caption: run a second stage with the first caption in the prompt.
            batch_size: ignored, accepted for compatibility: there is no barrier between batches.
            float_maximum: maximum value of videos of floats: 255, as the reference prepares them, or 1.

        Returns:
            A caption for each video, in order. The inputs are not modified.

        Raises:
            CaptionsIncomplete: if some videos got no caption: the video or prompt is invalid, the prompt has no place
                for the second prompt, a request fails, or the engine crashes too often. The exception contains all
                other captions.
        """
        if self._loop is None or self._supervisor is None:
            raise RuntimeError("call setup() before generate()")
        call = Call(
            self._supervisor,
            pixels=self._variant.pixels,
            enlarges=self.model_does_preprocess,
            max_output_tokens=self.max_output_tokens,
            stage2_prompt=self.stage2_prompt if generate_stage2_caption else None,
            float_maximum=float_maximum,
        )
        return self._loop.run(call.captions(videos))


def _snapshot(model_dir: str, variant: str) -> Snapshot:
    remedy = f"call QwenVL.download_weights_on_node({str(model_dir)!r}, variant={variant!r})"
    return Snapshot(Root.open(str(model_dir)), find_variant(variant), remedy, setting="model_dir")
