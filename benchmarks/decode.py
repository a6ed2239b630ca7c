"""Benchmark of decoding: the frames of a plan, against decoding every frame as NeMo Curator does.

    python -m benchmarks.decode [--rounds 3]

Synthetic clips (FFmpeg's `testsrc2` and noise, 30 fps) are sampled at 2 fps and scaled to 360 lines. One arm is
`decode`. The reference decodes every frame in order, converts the sampled ones to full-size RGB as one batch, and
resizes the batch: in one arm as float32 (`f32`), in the other as uint8 (`u8`). All arms use one thread, take turns, and
get the same frame numbers. A ratio is the reference's CPU time over ours in the same round, as the median over the
rounds. The frames of `decode` must be those of a full decode with the same scaler.

The last line is JSON:

- `h264_vs_f32`, `h264_vs_u8`: the median ratios over the H.264 clips; `min_vs_u8`: the smallest ratio of all clips;
- `peak_mb`: the memory that `decode` adds to a new process at its peak, for 20 s of 720p;
- `peak_mb_2gib`: the same for reading a clip of 2.2 GiB and decoding its last window;
- `sparse_keyframe_last_vs_first`: for a clip of 30 minutes with one keyframe, the CPU time of the last ten windows over
  that of the first ten.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

import av
import av.filter
import numpy as np
import torch
from av.video.frame import PictureType
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from caption_assets.sources.manifest import PIECE_BYTES
from caption_assets.video.container import open_video
from caption_assets.video.decode import ClipDecoder, Frames
from caption_assets.video.matrix import HD_LINES
from caption_assets.video.picture import Renderer
from caption_assets.video.track import DEFAULT_TRACK
from caption_assets.workers.shared_memory import ClipFile

T = TypeVar("T")
FPS = 30
SAMPLED_FPS = 2
SIZE = (360, 640)
"""Height and width of the resulting frames."""
ENCODERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264": ("libx264", "mp4", {"preset": "veryfast"}),
    "h265": ("libx265", "mp4", {"preset": "ultrafast", "x265-params": "bframes=4:b-pyramid=1:log-level=none"}),
    "vp9": ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8", "crf": "33", "b": "0"}),
    "av1": ("libsvtav1", "mp4", {"preset": "10", "crf": "35"}),
}
"""Encoder, container and options of each codec: fast presets, with the codec's usual structure of key and B-frames."""
WINDOW, WINDOW_SAMPLED = 256, 18
"""Number of frames of a default window, and of those that are sampled."""
LARGE_BYTES = 22 * 2**30 // 10
GROUP = 15
"""Number of pictures in a group of pictures of the large clip."""
NOISE = 6
"""Strength of FFmpeg's noise: 720p in H.264 then has 3 Mbit/s, as on the web."""


@dataclass(frozen=True, slots=True)
class Case:
    """The description of a clip."""

    codec: str
    seconds: int
    height: int

    @property
    def name(self) -> str:
        """Name in the output."""
        return f"{self.codec} {self.height}p {self.seconds} s"

    @property
    def frames(self) -> int:
        """Number of frames of the clip."""
        return self.seconds * FPS

    @property
    def sampled(self) -> int:
        """Number of frames that are sampled."""
        return self.seconds * SAMPLED_FPS


MEMORY_CASE = Case("h264", 20, 720)
CASES = [
    MEMORY_CASE,
    Case("h264", 5, 720),
    Case("h264", 60, 720),
    Case("h264", 5, 1080),
    Case("h265", 5, 720),
    Case("vp9", 5, 720),
    Case("vp9", 5, 1080),
    Case("av1", 5, 720),
    Case("av1", 5, 1080),
]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds for each clip (default 3)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    ratios = {}
    peak_mb = 0
    for case in CASES:
        data = encode(case)
        check_frames(case, data)
        times = [race(case, data) for _ in range(rounds)]
        ratios[case] = {arm: median(each[arm] / each["plan"] for each in times) for arm in ("f32", "u8")}
        print(
            f"{case.name:<16} {len(data) / 1e6:6.1f} MB  plan {median(each['plan'] for each in times):6.2f} s CPU"
            f"  {ratios[case]['f32']:.2f} x f32  {ratios[case]['u8']:.2f} x u8",
            flush=True,
        )
        if case == MEMORY_CASE:
            peak_mb = in_new_process(_added_peak, case, data)
    h264 = [ratio for case, ratio in ratios.items() if case.codec == "h264"]
    print(
        json.dumps(
            {
                "h264_vs_f32": round(median(ratio["f32"] for ratio in h264), 2),
                "h264_vs_u8": round(median(ratio["u8"] for ratio in h264), 2),
                "min_vs_u8": round(min(ratio["u8"] for ratio in ratios.values()), 2),
                "peak_mb": peak_mb,
                "peak_mb_2gib": in_new_process(_large_clip_peak),
                "sparse_keyframe_last_vs_first": round(sparse_keyframe_ratio(), 2),
            }
        )
    )


def race(case: Case, data: bytes) -> dict[str, float]:
    """CPU seconds of each arm, in one round."""
    planned, frames = timed(partial(plan, case, data))
    times = {"plan": planned}
    for arm, dtype in (("f32", torch.float32), ("u8", torch.uint8)):
        times[arm], _ = timed(partial(reference, data, frames.indices, dtype))
    return times


def check_frames(case: Case, data: bytes) -> None:
    """Raise an error if the plan's frames differ from those of a full decode."""
    frames = plan(case, data)
    wanted = dict(zip(frames.indices, frames.pixels, strict=True))
    with open_video(data) as (container, stream):
        renderer = Renderer(stream, DEFAULT_TRACK, SIZE)
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted and not np.array_equal(renderer.render(frame).pixels, wanted[index]):
                raise AssertionError(f"{case.name}: frame {index} is not that of a full decode")


def plan(case: Case, data: bytes) -> Frames:
    """Frames of the whole clip, decoded by the project's plan."""
    with closing(ClipDecoder(partial(BytesIO, data))) as decoder:
        return decoder.frames(0, case.frames, case.sampled, SIZE)


def timed(run: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds of a call, over all cores, and its result."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def reference(data: bytes, indices: tuple[int, ...], dtype: torch.dtype) -> NDArray[Any]:
    """Decode every frame in order, then resize the sampled ones as one batch, as NeMo Curator does."""
    wanted = set(indices)
    converter = VideoReformatter()
    with av.open(BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        frames = [as_rgb(frame, converter) for index, frame in enumerate(container.decode(stream)) if index in wanted]
    batch = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).to(dtype)
    scaled = torch.nn.functional.interpolate(batch, size=SIZE, mode="bicubic", antialias=True)
    return np.asarray(scaled.permute(0, 2, 3, 1).contiguous())


def as_rgb(frame: av.VideoFrame, converter: VideoReformatter) -> NDArray[Any]:
    """Convert a frame to full-size RGB, (height, width, 3), with the matrix that players use for untagged video."""
    matrix = Colorspace.ITU709 if frame.height >= HD_LINES else Colorspace.ITU601
    rgb = converter.reformat(frame, format="rgb24", src_colorspace=matrix, dst_colorspace=matrix, threads=1)
    return np.asarray(rgb.to_ndarray())


def in_new_process(measure: Callable[..., T], *args: Any) -> T:
    """Call a function of this module in a new process, and return its result."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, *args).result()


def _added_peak(case: Case, data: bytes) -> int:
    return _megabytes_added(partial(plan, case, data))


def _megabytes_added(run: Callable[[], object]) -> int:
    """Memory that a call adds to this process at its peak, in MB."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark (proc(5))
    base = _high_water_kb()
    run()
    return round((_high_water_kb() - base) / 1024)


def _large_clip_peak() -> int:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "large.mp4"
        frames = write_large_clip(path)

        def read_and_decode() -> None:
            copy = ClipFile(path.stat().st_size)
            with path.open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    copy.append(piece)
            with closing(ClipDecoder(copy.handle.open)) as decoder:
                decoder.frames(frames - WINDOW, frames, WINDOW_SAMPLED, SIZE)

        return _megabytes_added(read_and_decode)


def write_large_clip(path: Path) -> int:
    """Write a clip of ``LARGE_BYTES`` that repeats one group of pictures, and return its number of frames."""
    options = {"preset": "ultrafast", "x264-params": f"keyint={GROUP}:scenecut=0:bframes=0:qp=1:threads=1"}
    with av.open(BytesIO(encode(Case("h264", 1, 1080), options)), "r") as source:
        packets = [packet for packet in source.demux(video=0) if packet.size]
        with av.open(str(path), "w") as output:
            stream = output.add_stream_from_template(source.streams.video[0])
            frames = size = 0
            while size < LARGE_BYTES:
                for packet in packets[:GROUP]:
                    copy = av.Packet(bytes(packet))
                    copy.stream, copy.time_base = stream, Fraction(1, FPS)
                    copy.pts = copy.dts = frames
                    copy.is_keyframe = packet.is_keyframe
                    output.mux(copy)
                    frames, size = frames + 1, size + packet.size
    return frames


def sparse_keyframe_ratio() -> float:
    """Median CPU time of the last ten windows of a clip with one keyframe, over that of the first ten."""
    options = {"preset": "ultrafast", "x264-params": "keyint=infinite:scenecut=0:bframes=2:threads=1"}
    case = Case("h264", 1800, 180)
    data = encode(case, options)
    times = []
    with closing(ClipDecoder(partial(BytesIO, data))) as decoder:
        for start in range(0, case.frames - WINDOW + 1, WINDOW):
            times.append(timed(partial(decoder.frames, start, start + WINDOW, WINDOW_SAMPLED, (112, 196)))[0])
    return median(times[-10:]) / median(times[:10])


def _high_water_kb() -> int:
    """Peak resident memory, in KiB. A process inherits ``ru_maxrss`` from its parent, so it is not used."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def encode(case: Case, options: dict[str, str] | None = None) -> bytes:
    """Encode a clip.

    Args:
        case: its description.
        options: the encoder's options, instead of those in ``ENCODERS``.
    """
    encoder, container, usual = ENCODERS[case.codec]
    options = usual if options is None else options
    file = BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = cast(VideoStream, output.add_stream(encoder, rate=FPS, options=options))
        stream.width, stream.height, stream.pix_fmt = case.height * 16 // 9, case.height, "yuv420p"
        for frame in pictures(case):
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def pictures(case: Case) -> Iterator[av.VideoFrame]:
    """Frames of FFmpeg's moving test picture, with noise that differs in each frame."""
    graph = av.filter.Graph()
    source = graph.add("testsrc2", f"size={case.height * 16 // 9}x{case.height}:rate={FPS}")
    noise = graph.add("noise", f"alls={NOISE}:allf=t")
    planes = graph.add("format", "yuv420p")
    graph.link_nodes(source, noise, planes, graph.add("buffersink")).configure()
    for index in range(case.frames):
        frame = cast(av.VideoFrame, graph.pull())
        frame.pts, frame.time_base, frame.pict_type = index, Fraction(1, FPS), PictureType.NONE
        yield frame


if __name__ == "__main__":
    main()
