"""The training of the embedded sample model from random weights: ``caption-assets train-sample OUT``.

A tiny Qwen2.5-VL (the real architecture) learns the toy world of ``world.py``, with the questions of the recipe
``sample`` and with the project's pixel limits, resize and frame sampling. Stages that need a text are trained
counterfactually. In stage 2, color, shape and motion are copied from the stage-1 text, even if it is false, and size
and background are read from the pixels. So a lost or swapped stage-1 caption changes the words of stage 2.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from caption_assets.captioning.budget import fit
from caption_assets.models.variants import SAMPLE
from caption_assets.sample.clips import MAX_SCENE_FRAMES, encode_frames, random_length, random_size
from caption_assets.sample.lessons import ALIGNMENT, STAGE1, STAGES, Lesson, lessons
from caption_assets.sample.roc import roc_auc
from caption_assets.sample.tokenizer import build_tokenizer
from caption_assets.sample.training_config import TrainingConfig
from caption_assets.sample.world import MOTIONS, VALUES, Scene, random_scene, render
from caption_assets.video.frame_sampling import FrameSampling, frame_count
from caption_assets.video.scaler import Scaler, resize

PATCH = 14
MERGE = 2
TOKEN = PATCH * MERGE
CELL = 2
CELLS = TOKEN // CELL
"""A visual token covers 28x28 pixels of two frames; its outline is predicted in cells of 2x2 pixels."""
TOKENS_PER_SECOND = 2
MIDDLE_BLOCK = 1
"""Block of the vision tower that predicts the outline."""
LATE_LAYER = 2
"""Layer of the language model that predicts whether an attribute in a text is correct. The next layer collects it."""
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Normalization of Qwen's processor (that of CLIP)."""
INITIALIZER_RANGE = 0.04
"""Standard deviation of initial weights. Wide models use 0.02; narrower ones need more."""
MIN_COVER = 0.1
"""Minimum share of a visual token's pixels that the shape covers, for a loss on the shape's attributes."""
ATTRIBUTES = {name: VALUES[name] for name in ("shape", "color", "size", "motion")}
"""Attributes that a visual token on the shape is trained to predict, with their classes."""
IGNORED = -100
HELD_OUT_SEED = 10_000_019


@dataclass(frozen=True, slots=True)
class Example:
    """One window, as the model's input."""

    scene: Scene
    frames: NDArray[np.uint8]
    """RGB, uint8 of shape (frames, height, width, 3)."""
    fps: float


def train(config: TrainingConfig, out: Path) -> None:
    """Train the sample model and keep the weights with the best held-out score in ``out``."""
    torch.manual_seed(config.seed)
    trainer = Trainer(config, out)
    trainer.run(config.vision_steps, config.vision_rate, trainer.vision_losses)
    trainer.run(config.steps, config.rate, trainer.caption_losses, measured=True)


class Trainer:
    """The model, its auxiliary heads, and its training and evaluation examples."""

    def __init__(self, config: TrainingConfig, out: Path) -> None:
        self.config, self.out = config, out
        self.rng = np.random.default_rng(config.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer = build_tokenizer()
        save_processor(tokenizer, out)
        self.model = Qwen2_5_VLForConditionalGeneration(build_config(tokenizer)).to(self.device)
        self.heads = AuxiliaryHeads(self.model.config).to(self.device)
        print(f"{sum(p.numel() for p in self.model.parameters()) / 1e6:.2f} M parameters on {self.device}", flush=True)
        self.batcher = Batcher(tokenizer, self.model.config)
        self.pool = make_examples(range(config.seed, config.seed + config.examples), config.workers)
        self.held_out = make_examples(range(HELD_OUT_SEED, HELD_OUT_SEED + config.held_out), config.workers)
        self.best = -1.0

    def run(self, steps: int, rate: float, losses: Callable[[], dict[str, Tensor]], *, measured: bool = False) -> None:
        """One phase of training, with its own schedule; if ``measured``, its best weights are kept."""
        parameters = [*self.model.parameters(), *self.heads.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, steps=steps))
        begun = time.monotonic()
        for step in range(1, steps + 1):
            step_losses = losses()
            optimizer.zero_grad()
            sum(step_losses.values()).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            if step % 50 == 0:
                shown = ", ".join(f"{name} {loss.item():.3f}" for name, loss in step_losses.items())
                print(f"{step} of {steps}: {shown}; {(time.monotonic() - begun) / step:.3f} s/step", flush=True)
            if measured and (step % 250 == 0 or step == steps):
                self.save_if_best()

    def vision_losses(self) -> dict[str, Tensor]:
        """Losses of the auxiliary heads on a batch of glimpses."""
        batch = vision_batch([glimpse(example, self.rng) for example in self.draw(self.config.glimpses)]).to(
            self.device
        )
        return self.heads(*encode(self.model, batch), batch)  # type: ignore[no-any-return]

    def caption_losses(self) -> dict[str, Tensor]:
        """Losses of the auxiliary heads and of the answers to each question on a batch of windows."""
        batch = self.batcher.batch(self.draw(self.config.batch), self.rng).to(self.device)
        visual, middle = encode(self.model, batch.vision)
        hidden, late = hidden_states(self.model, batch, visual)
        losses: dict[str, Tensor] = self.heads(visual, middle, batch.vision)
        for number, stage in enumerate(STAGES, start=1):
            chosen = (batch.stages.abs() == number) & (batch.labels != IGNORED)
            losses[stage.name] = nn.functional.cross_entropy(self.model.lm_head(hidden[chosen]), batch.labels[chosen])
        losses["match"] = self.heads.match_loss(late, batch)
        return losses

    def draw(self, count: int) -> list[Example]:
        """Random examples, randomly mirrored and reversed."""
        return [augment(self.pool[index], self.rng) for index in self.rng.integers(len(self.pool), size=count)]

    def save_if_best(self) -> None:
        """Evaluate the model on the held-out examples, and save it if its score is the best so far."""
        scores = evaluate(self.model, self.batcher, self.held_out, self.config.batch)
        print("held-out: " + ", ".join(f"{name} {score:.3f}" for name, score in scores.items()), flush=True)
        if (score := min(scores.values()) + sum(scores.values()) / 100) > self.best:
            self.best = score
            save_weights(self.model, self.out)


def _rate(step: int, steps: int) -> float:
    """Learning rate schedule: linear warm-up over 100 steps, then a cosine down to 2 % of the peak."""
    warm = min(1.0, (step + 1) / 100)
    return warm * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * step / steps)))


# --- model folder


def build_config(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLConfig:
    """The architecture of Qwen2.5-VL at a few million parameters."""
    token = tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLConfig(
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        text_config={
            "vocab_size": math.ceil(len(tokenizer) / 64) * 64,
            "hidden_size": 192,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "tie_word_embeddings": True,
            "initializer_range": INITIALIZER_RANGE,
        },
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "tokens_per_second": TOKENS_PER_SECOND,
            "window_size": 224,
            "out_hidden_size": 192,
            "fullatt_block_indexes": [1, 3],
            "initializer_range": INITIALIZER_RANGE,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def save_processor(tokenizer: Qwen2Tokenizer, out: Path) -> None:
    """Write the tokenizer, chat template and processor files."""
    limits = SAMPLE.pixels
    size = {"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels}
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False),
        chat_template=tokenizer.chat_template,
    ).save_pretrained(out)


def save_weights(model: Qwen2_5_VLForConditionalGeneration, out: Path) -> None:
    """Write the configuration, and the weights in bfloat16 as one safetensors file."""
    half = Qwen2_5_VLForConditionalGeneration(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    half.generation_config = GenerationConfig(
        bos_token_id=model.config.text_config.bos_token_id, eos_token_id=model.config.text_config.eos_token_id
    )
    half.save_pretrained(out)


# --- examples


def make_examples(seeds: Iterable[int], workers: int) -> list[Example]:
    """Make one example for each seed, in parallel."""
    with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(make_example, seeds, chunksize=64))


def make_example(seed: int) -> Example:
    """Make an example: a scene, its sampled frames at the model's size, and their frame rate."""
    rng = np.random.default_rng(seed)
    width, height = random_size(rng, shortest=(112, 260))
    scene = random_scene(rng, width, height)
    source_fps, source_frames = random_length(rng, longest_seconds=MAX_SCENE_FRAMES)
    wanted = frame_count(source_frames / source_fps, source_frames, FrameSampling())
    grid = fit(wanted, height, width, SAMPLE.pixels)
    indices = np.linspace(0, source_frames - 1, grid.frames).astype(int)
    frames = list(render(scene, width, height, [index / (source_frames - 1) for index in indices], rng))
    if rng.random() < 0.6:
        codec = "vp9" if rng.random() < 0.3 else "h264"
        frames = through_codec(frames, codec, crf=int(rng.integers(18, 34)))
    fps = (grid.frames - 1) * source_fps / (source_frames - 1)
    return Example(scene, np.stack([resize(frame, grid.height, grid.width) for frame in frames]), fps)


def through_codec(frames: Sequence[NDArray[np.uint8]], codec: str, crf: int) -> list[NDArray[np.uint8]]:
    """Encode and decode frames, so that the model is trained on compression artifacts."""
    height, width, _ = frames[0].shape
    data = encode_frames(frames, width, height, 4, codec, crf)
    with av.open(BytesIO(data), "r") as container:
        return [Scaler().scale(frame, "gbrp", height, width) for frame in container.decode(video=0)]


def augment(example: Example, rng: np.random.Generator) -> Example:
    """Mirror the example horizontally and reverse it in time, each with probability 0.5."""
    frames, scene = example.frames, example.scene
    if rng.random() < 0.5:
        frames, scene = frames[:, :, ::-1], _mirrored(scene)
    if rng.random() < 0.5:
        frames, scene = frames[::-1], _turned(scene, scene.end, scene.start, (-1, -1))
    return Example(scene, frames, example.fps)


def _mirrored(scene: Scene) -> Scene:
    (x0, y0), (x1, y1) = scene.start, scene.end
    return _turned(scene, (1.0 - x0, y0), (1.0 - x1, y1), (-1, 1))


def _turned(scene: Scene, start: tuple[float, float], end: tuple[float, float], signs: tuple[int, int]) -> Scene:
    x, y = MOTIONS[scene.motion]
    motion = next(name for name, way in MOTIONS.items() if way == (x * signs[0], y * signs[1]))
    return replace(scene, motion=motion, start=start, end=end)


def glimpse(example: Example, rng: np.random.Generator) -> Example:
    """A crop of 3 or 4 visual tokens per side, of one temporal patch, that contains the shape's center.

    Most of a window is background, and its patches all show the same shape. A batch of glimpses costs as much as a few
    windows and shows five times as many shapes: the vision tower learns them in a tenth of the time.
    """
    scene, (count, height, width, _) = example.scene, example.frames.shape
    patch = int(rng.integers(count // 2))
    center = scene.center(_patch_time(patch, count // 2))
    size = int(rng.integers(3, 5))
    spans = [_span(at, side // TOKEN, size, rng) for at, side in zip(center, (width, height), strict=True)]
    (left, right), (top, bottom) = spans
    frames = example.frames[2 * patch : 2 * patch + 2, top * TOKEN : bottom * TOKEN, left * TOKEN : right * TOKEN]
    at = (
        (center[0] * width / TOKEN - left) / (right - left),
        (center[1] * height / TOKEN - top) / (bottom - top),
    )
    return Example(replace(scene, start=at, end=at), frames, example.fps)


def _span(center: float, tokens: int, size: int, rng: np.random.Generator) -> tuple[int, int]:
    """A random range of ``size`` of a side's ``tokens`` that contains the center."""
    size = min(size, tokens)
    at = min(int(center * tokens), tokens - 1)
    first = int(np.clip(at - rng.integers(size), 0, tokens - size))
    return first, first + size


def _patch_time(patch: int, patches: int) -> float:
    """The middle of a temporal patch's two frames, from 0 at the window's first frame to 1 at its last."""
    return (2 * patch + 0.5) / (2 * patches - 1)


# --- batches


@dataclass(frozen=True, slots=True)
class VisionBatch:
    """Inputs of the vision tower and labels of its auxiliary heads: ``V`` visual tokens in ``T`` temporal patches."""

    patches: Tensor
    """float32 (4 * V, 3 * 2 * 14 * 14), in the processor's layout."""
    grids: Tensor
    """int64 (examples, 3): temporal, vertical and horizontal patches."""
    cover: Tensor
    """float32 (V, 2 * 14 * 14): share of each 2x2 pixels of a token's two frames that the shape covers."""
    centers: Tensor
    """int64 (T,): the visual token that contains the shape's center."""
    attributes: Tensor
    """int64 (T, 4): the classes of ``ATTRIBUTES``."""
    backgrounds: Tensor
    """int64 (T,): the class of the background."""
    patch_of_token: Tensor
    """int64 (V,): the temporal patch of each visual token."""

    def to(self, device: torch.device) -> VisionBatch:
        """A copy on another device."""
        return VisionBatch(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Batch:
    """All stages of ``B`` examples, each example as one row of ``L`` tokens: the video, then the stages.

    The stages share the video's tokens, as they share the prefix cache in vLLM. The mask hides them from each other.
    """

    vision: VisionBatch
    tokens: Tensor
    """int64 (B, L)."""
    positions: Tensor
    """int64 (3, B, L)."""
    mask: Tensor
    """bool (B, 1, L, L): true if the row's token attends to the column's."""
    labels: Tensor
    """int64 (B, L): the next token if it belongs to an answer, otherwise -100."""
    stages: Tensor
    """int64 (B, L): 0 for the video and the tokens before it, otherwise the stage, from 1; negative without video."""
    words: Tensor
    """int64 (W, 2): row and column of the last token of each attribute in the texts of ``alignment``."""
    matches: Tensor
    """float32 (W,): 1 if the attribute is correct."""

    def to(self, device: torch.device) -> Batch:
        """A copy on another device."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


class Batcher:
    """Converts examples to token sequences and positions, as vLLM does for the same request."""

    def __init__(self, tokenizer: Qwen2Tokenizer, config: Qwen2_5_VLConfig) -> None:
        self.tokenizer = tokenizer
        self.video_token = config.video_token_id
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")

    def batch(self, examples: Sequence[Example], rng: np.random.Generator) -> Batch:
        """Batch the lessons of ``examples``."""
        vision = vision_batch(examples)
        grids: list[list[int]] = vision.grids.tolist()
        rows = [self._row(example, grid, rng) for example, grid in zip(examples, grids, strict=True)]
        longest = max(len(row.tokens) for row in rows)
        stages = torch.stack([_pad(row.stages, longest, 0) for row in rows])
        return Batch(
            vision=vision,
            tokens=torch.stack([_pad(row.tokens, longest, 0) for row in rows]),
            positions=torch.stack([_pad(row.positions, longest, 0) for row in rows], dim=1),
            mask=_mask(stages),
            labels=torch.stack([_pad(row.labels, longest, IGNORED) for row in rows]),
            stages=stages,
            words=torch.cat([nn.functional.pad(row.words[:, None], (1, 0), value=at) for at, row in enumerate(rows)]),
            matches=torch.cat([row.matches for row in rows]),
        )

    def _row(self, example: Example, grid: list[int], rng: np.random.Generator) -> _Row:
        head, _ = self._prompt(STAGE1.prompt)
        shared = [*head, *[self.video_token] * (grid[0] * (grid[1] // MERGE) * (grid[2] // MERGE))]
        tokens, stages, labels = list(shared), [0] * len(shared), [IGNORED] * len(shared)
        positions = [mrope_positions(len(shared), len(head), grid, example.fps)]
        words: list[int] = []
        matches: list[bool] = []
        for number, lesson in enumerate(lessons(example.scene, rng), start=1):
            has_video = lesson.stage.video
            _, prompt = self._prompt(lesson.instruction, video=has_video)
            if lesson.matches:
                words += [len(tokens) + at for at in self._word_ends(prompt, lesson)]
                matches += lesson.matches.values()
            answer = self._answer(lesson.answer)
            length = len(prompt) + len(answer)
            tokens += [*prompt, *answer]
            stages += [number if has_video else -number] * length
            labels += [*[IGNORED] * (len(prompt) - 1), *answer, IGNORED]
            if has_video:
                whole = mrope_positions(len(shared) + length, len(head), grid, example.fps)
                positions.append(whole[:, len(shared) :])
            else:
                positions.append(torch.arange(length).expand(3, -1))
        return _Row(
            torch.tensor(tokens),
            torch.tensor(stages),
            torch.tensor(labels),
            torch.cat(positions, dim=1),
            torch.tensor(words),
            torch.tensor(matches, dtype=torch.float32),
        )

    def _prompt(self, instruction: str, *, video: bool = True) -> tuple[list[int], list[int]]:
        """The tokens of a rendered prompt before and after those of the video; without video, all are after it."""
        content = [*([{"type": "video"}] if video else []), {"type": "text", "text": instruction}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        ids = self.tokenizer(text).input_ids
        if not video:
            return [], ids
        at = ids.index(self.video_token)
        return ids[:at], ids[at + 1 :]

    def _word_ends(self, prompt: list[int], lesson: Lesson) -> list[int]:
        """Position of the last token of each attribute of the lesson's text, in the order of ``VALUES``."""
        _, size, color, shape, rest = lesson.text.rstrip(".").split(" ", 4)
        motion, _ = rest.split(" on a ")
        begin = self.tokenizer.decode(prompt).index(lesson.text)
        ends = [begin + lesson.text.index(f" {word}") + 1 + len(word) for word in (color, shape, motion, size)]
        ends.append(begin + len(lesson.text) - len(" background."))
        lengths = np.cumsum([len(self.tokenizer.decode([token])) for token in prompt])
        return [int(np.searchsorted(lengths, end)) for end in ends]

    def _answer(self, text: str) -> list[int]:
        return [*self.tokenizer(text).input_ids, self.end]


@dataclass(frozen=True, slots=True)
class _Row:
    """One example's tokens, as in ``Batch``, unpadded."""

    tokens: Tensor
    stages: Tensor
    labels: Tensor
    positions: Tensor
    words: Tensor
    """int64 (W,): columns."""
    matches: Tensor


def _mask(stages: Tensor) -> Tensor:
    """Causal attention mask in which each stage attends to itself and, unless it is negative, to the video."""
    length = stages.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    row, column = stages[:, :, None], stages[:, None, :]
    return (causal & (((column == 0) & (row >= 0)) | (row == column))).unsqueeze(1)


def mrope_positions(length: int, video_at: int, grid: list[int], fps: float) -> Tensor:
    """Positions (3, ``length``) of a prompt with one video, as vLLM computes them for Qwen2.5-VL.

    Text after the video continues from the largest position so far, in any of the three dimensions.
    """
    seconds_per_patch = 2 / fps
    time_, down, right = np.indices((grid[0], grid[1] // MERGE, grid[2] // MERGE))
    time_ = (time_ * (seconds_per_patch * TOKENS_PER_SECOND)).astype(np.int64)
    video = np.stack([time_, down, right]).reshape(3, -1) + video_at
    tail = length - video_at - video.shape[1]
    after = np.arange(tail) + video.max() + 1
    before = np.arange(video_at)
    return torch.from_numpy(np.concatenate([np.stack([before] * 3), video, np.stack([after] * 3)], axis=1))


def patchify(frames: NDArray[np.uint8]) -> tuple[Tensor, list[int]]:
    """Normalized patches of a video in the order of Qwen's processor, and its grid (temporal, vertical, horizontal)."""
    count, height, width, channels = frames.shape
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).float() / 255.0
    pixels = (pixels - torch.tensor(MEAN)) / torch.tensor(STD)
    grid = [count // 2, height // PATCH, width // PATCH]
    split = pixels.view(grid[0], 2, grid[1] // MERGE, MERGE, PATCH, grid[2] // MERGE, MERGE, PATCH, channels)
    return split.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(math.prod(grid), -1), grid


def cover(example: Example) -> Tensor:
    """The shape's coverage, float32 (V, 2 * 14 * 14), from the pixels' colors between background and shape."""
    scene, (count, height, width, _) = example.scene, example.frames.shape
    background = torch.tensor(scene.background_rgb, dtype=torch.float32)
    away = torch.tensor(scene.rgb, dtype=torch.float32) - background
    pixels = torch.from_numpy(np.ascontiguousarray(example.frames)).float() - background
    share = (pixels @ away / away.square().sum()).clamp(0, 1)
    cells = share.view(count // 2, 2, height // TOKEN, CELLS, CELL, width // TOKEN, CELLS, CELL).mean((4, 7))
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(-1, 2 * CELLS * CELLS)


def _pad(values: Tensor, length: int, filler: int) -> Tensor:
    return nn.functional.pad(values, (0, length - values.shape[-1]), value=filler)


def vision_batch(examples: Sequence[Example]) -> VisionBatch:
    """Patches of ``examples``, with labels for the auxiliary heads."""
    videos = [patchify(example.frames) for example in examples]
    centers: list[int] = []
    attributes: list[list[int]] = []
    backgrounds: list[int] = []
    tokens: list[int] = []
    for example, (_, grid) in zip(examples, videos, strict=True):
        scene, rows, columns = example.scene, grid[1] // MERGE, grid[2] // MERGE
        for patch in range(grid[0]):
            x, y = scene.center(_patch_time(patch, grid[0]))
            at = min(int(y * rows), rows - 1) * columns + min(int(x * columns), columns - 1)
            centers.append(len(tokens) + at)
            tokens += [len(attributes)] * (rows * columns)
            backgrounds.append(VALUES["background"].index(scene.background))
            attributes.append([values.index(getattr(scene, name)) for name, values in ATTRIBUTES.items()])
    return VisionBatch(
        patches=torch.cat([patches for patches, _ in videos]),
        grids=torch.tensor([grid for _, grid in videos]),
        cover=torch.cat([cover(example) for example in examples]),
        centers=torch.tensor(centers),
        attributes=torch.tensor(attributes),
        backgrounds=torch.tensor(backgrounds),
        patch_of_token=torch.tensor(tokens),
    )


# --- losses


class AuxiliaryHeads(nn.Module):  # type: ignore[misc]
    """Auxiliary heads for training: the shape's outline and center in each visual token, and the shape's attributes.

    Without them motion, and even more so shape, is learned only after a long plateau. The outline is predicted from a
    middle block, so that later blocks can recognize the shape. A further head predicts whether an attribute in a text
    of ``alignment`` is correct. The heads are not saved.
    """

    def __init__(self, config: Qwen2_5_VLConfig) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.place = nn.Linear(width, 1)
        self.outline = nn.Linear(MERGE * MERGE * config.vision_config.hidden_size, 2 * CELLS * CELLS)
        self.background = nn.Linear(width, len(VALUES["background"]))
        self.match = nn.Linear(width, 1)
        self.kinds = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in ATTRIBUTES.items()})

    def forward(self, visual: Tensor, middle: Tensor, batch: VisionBatch) -> dict[str, Tensor]:
        """The loss of each head, given the outputs of ``encode``."""
        bce = nn.functional.binary_cross_entropy_with_logits
        center = torch.zeros(len(visual), device=visual.device)
        center[batch.centers] = 1.0
        losses = {
            "place": bce(self.place(visual).squeeze(1), center, pos_weight=torch.tensor(5.0, device=visual.device)),
            "outline": 8.0 * bce(self.outline(middle), batch.cover),
        }
        losses["background"] = nn.functional.cross_entropy(
            self.background(visual), batch.backgrounds[batch.patch_of_token]
        )
        covered = batch.cover.mean(1) > MIN_COVER
        covered[batch.centers] = True
        attributes = batch.attributes[batch.patch_of_token[covered]]
        for index, (name, head) in enumerate(self.kinds.items()):
            losses[name] = nn.functional.cross_entropy(head(visual[covered]), attributes[:, index])
        return losses

    def match_loss(self, late: Tensor, batch: Batch) -> Tensor:
        """The loss on whether attributes in texts are correct, given the second output of ``hidden_states``."""
        found = self.match(late[batch.words[:, 0], batch.words[:, 1]]).squeeze(1)
        return nn.functional.binary_cross_entropy_with_logits(found, batch.matches)


def encode(model: Qwen2_5_VLForConditionalGeneration, batch: VisionBatch) -> tuple[Tensor, Tensor]:
    """Visual tokens, float32 (V, width), and a middle block's output for their patches, float32 (V, 4 * width).

    An attention window covers a whole frame of the sample model, so the blocks process the patches in their order.
    """
    middle: list[Tensor] = []
    hook = model.model.visual.blocks[MIDDLE_BLOCK].register_forward_hook(lambda *seen: middle.append(seen[2]))
    try:
        visual = model.model.visual(batch.patches, grid_thw=batch.grids).pooler_output
    finally:
        hook.remove()
    return visual, middle[0].reshape(len(visual), -1)


def hidden_states(model: Qwen2_5_VLForConditionalGeneration, batch: Batch, visual: Tensor) -> tuple[Tensor, Tensor]:
    """The language model's last hidden states, and those of ``LATE_LAYER``, each float32 (B, L, width)."""
    embeddings = model.get_input_embeddings()(batch.tokens)
    is_video = (batch.tokens == model.config.video_token_id).unsqueeze(-1)
    embeddings = embeddings.masked_scatter(is_video, visual)
    late: list[Tensor] = []
    hook = model.model.language_model.layers[LATE_LAYER].register_forward_hook(lambda *seen: late.append(seen[2]))
    try:
        last = model.model.language_model(
            inputs_embeds=embeddings, position_ids=batch.positions, attention_mask=batch.mask, use_cache=False
        ).last_hidden_state
    finally:
        hook.remove()
    return last, late[0]


@torch.inference_mode()  # type: ignore[untyped-decorator]
def evaluate(
    model: Qwen2_5_VLForConditionalGeneration, batcher: Batcher, examples: Sequence[Example], size: int
) -> dict[str, float]:
    """By stage: the share of answers that greedy decoding reproduces exactly; for ``alignment`` the ROC AUC."""
    model.eval()
    rng = np.random.default_rng(HELD_OUT_SEED)
    right: dict[str, list[bool]] = {stage.name: [] for stage in STAGES}
    scores: dict[str, list[float]] = {"yes": [], "no": []}
    yes, no = (batcher.tokenizer.convert_tokens_to_ids(answer) for answer in scores)
    for first in range(0, len(examples), size):
        batch = batcher.batch(examples[first : first + size], rng).to(model.device)
        logits = model.lm_head(hidden_states(model, batch, encode(model, batch.vision)[0])[0])
        wrong = (batch.labels != IGNORED) & (logits.argmax(-1) != batch.labels)
        for number, stage in enumerate(STAGES, start=1):
            right[stage.name] += (~(wrong & (batch.stages.abs() == number)).any(1)).tolist()
        for answer, token in (("yes", yes), ("no", no)):
            chosen = logits[batch.labels == token]
            scores[answer] += (chosen[:, yes] - chosen[:, no]).tolist()
    model.train()
    shares = {name: float(np.mean(found)) for name, found in right.items()}
    return {**shares, ALIGNMENT.name: roc_auc(scores["yes"], scores["no"])}
