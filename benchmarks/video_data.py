"""Clips per second of the video pipeline, beside PyTorchVideo and beside the bare decoders.

    python benchmarks/video_data.py --root /data/videos --output outputs/bench

A clip: --num_frames frames, every --frame_stride-th, from a random place of a random file of --root, short side
--short_side, uint8. Every way has a process of its own with one thread, so that its peak memory is its own; the ways
take turns, with the same files in the same order, and each draws its own places. All but PyTorchVideo's data set read
the very frames they are asked for; it decodes the whole window and drops three frames in four.
"""

import argparse
import multiprocessing
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from datamodules.video.dataset import VideoDataset
from datamodules.video.decode import open_video
from datamodules.video.sampling import FrameSampler
from lookupvit.bench.report import Report, environment

ENDINGS = (".avi", ".mp4", ".mkv", ".webm", ".mov")
PEER, PLAIN = "PyTorchVideo LabeledVideoDataset", "plain PyAV, seeking"
Reader = Callable[[int], Tensor]  # the number of a file to a clip


def main() -> None:
    args = _parser().parse_args()
    files = sorted(str(path) for path in args.root.rglob("*") if path.suffix.lower() in ENDINGS)
    span = (args.num_frames - 1) * args.frame_stride + 1
    files = [file for file in files if _length(file) >= span]
    if not files:
        sys.exit(f"video_data: error: {str(args.root)!r} holds no video of {span} frames: give another --root")
    rounds = measure(args, files)
    rows = []
    for name, (seconds, peak) in rounds.items():
        rate = [args.clips / s for s in seconds]
        row = {"way": name, "clips/s": round(statistics.median(rate), 2)}
        row |= {"min": round(min(rate), 2), "max": round(max(rate), 2)}
        for column, other in (("times PyTorchVideo's", PEER), ("times plain PyAV's", PLAIN)):
            ratios = [b / a for a, b in zip(seconds, rounds[other][0], strict=True)]
            row[column] = round(statistics.median(ratios), 2)
        rows.append(row | {"peak MiB": round(peak)})
    title = f"Video pipeline: {args.num_frames} frames, stride {args.frame_stride}, short side {args.short_side}"
    report = Report(title, rows, environment("cpu"))
    report.notes = [
        f"python benchmarks/video_data.py {' '.join(sys.argv[1:])}",
        f"{len(files)} files; {args.rounds} rounds of {args.clips} clips each; clips/s: median, least and most; the "
        "factors are medians of the rounds' ratios; peak MiB: resident memory of the process, imports included",
    ]
    report.show()
    report.save(args.output, "video_data", picture=False)


def measure(args: argparse.Namespace, files: list[str]) -> dict[str, tuple[list[float], float]]:
    """Seconds of each round, and peak memory in MiB, by way."""
    spawn, workers = multiprocessing.get_context("spawn"), {}
    for name in WAYS:
        here, there = spawn.Pipe()
        process = spawn.Process(target=work, args=(name, files, args, there), daemon=True)
        process.start()
        there.close()
        if (problem := here.recv()) is None:
            workers[name] = (process, here)
        else:
            print(f"left out: {name}: {problem}")
    found: dict[str, tuple[list[float], float]] = {name: ([], 0.0) for name in workers}
    dice = random.Random(0)
    for turn in range(args.rounds + 1):  # the first one warms up
        order = [dice.randrange(len(files)) for _ in range(args.clips)]
        for name, (_, pipe) in workers.items():
            pipe.send(order)
            seconds, peak = pipe.recv()
            if turn:
                found[name][0].append(seconds)
                found[name] = (found[name][0], peak)
        print(f"round {turn} of {args.rounds}", file=sys.stderr)
    for process, pipe in workers.values():
        pipe.send(None)
        process.join()
    return found


def work(name: str, files: list[str], args: argparse.Namespace, pipe: Connection) -> None:
    """A process of one way: reads lists of files, answers with seconds and peak memory."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        read = WAYS[name](files, args)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        pipe.send(str(error).strip().splitlines()[0])
        return
    pipe.send(None)
    while (order := pipe.recv()) is not None:
        start = time.perf_counter()
        for number in order:
            clip = read(number)
            assert len(clip) == args.num_frames and min(clip.shape[-2:]) == args.short_side, (name, clip.shape)
        seconds = time.perf_counter() - start
        pipe.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def _resize(frames: Tensor, short_side: int) -> Tensor:
    return F.resize(frames, [short_side], antialias=True)  # (T, 3, H, W)


def ours(decoder: str) -> Callable[[list[str], argparse.Namespace], Reader]:
    """This project's data set."""

    def make(files: list[str], args: argparse.Namespace) -> Reader:
        data = VideoDataset(
            [(file, {"label": 0}) for file in files],
            FrameSampler(args.num_frames, args.frame_stride),
            lambda frames: _resize(frames, args.short_side),
            decoder=decoder,
        )
        return lambda number: data[number][0]

    return make


def pytorchvideo(files: list[str], args: argparse.Namespace) -> Reader:
    """PyTorchVideo's data set, with the window of as many frames at the file's own rate."""
    from pytorchvideo.data.clip_sampling import RandomClipSampler
    from pytorchvideo.data.labeled_video_dataset import LabeledVideoDataset

    window = args.num_frames * args.frame_stride

    def transform(sample: dict) -> Tensor:
        frames = sample["video"]  # float (3, window, H, W)
        at = torch.linspace(0, frames.shape[1] - 1, args.num_frames).long()  # its UniformTemporalSubsample
        return _resize(frames[:, at].transpose(0, 1).to(torch.uint8), args.short_side)

    def endless(file: str) -> Iterator[Tensor]:
        clips = RandomClipSampler(clip_duration=Fraction(window) / Fraction(_rate(file)))
        data = LabeledVideoDataset([(file, {"label": 0})], clips, transform=transform, decode_audio=False)
        while True:  # an epoch of one file is one clip
            yield from data

    clips = [endless(file) for file in files]
    return lambda number: next(clips[number])


def plain_pyav(files: list[str], args: argparse.Namespace) -> Reader:
    """A loop written by hand: seek, decode, convert the wanted frames. It trusts the timestamps."""

    def read(number: int) -> Tensor:
        with av.open(files[number]) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            last = stream.frames - (args.num_frames - 1) * args.frame_stride - 1
            first = int(torch.randint(0, last + 1, ()))
            tick = 1 / (stream.average_rate * stream.time_base)  # of a frame
            start = (stream.start_time or 0) + first * tick
            container.seek(int(start), stream=stream)
            wanted = {round(start + i * args.frame_stride * tick) for i in range(args.num_frames)}
            frames = []
            for frame in container.decode(stream):
                if any(abs((frame.pts or 0) - at) < tick / 2 for at in wanted):
                    frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
                if len(frames) == args.num_frames:
                    break
        while len(frames) < args.num_frames:  # at the end of a file whose timestamps have gaps
            frames.append(frames[-1])
        return _resize(torch.stack(frames).permute(0, 3, 1, 2), args.short_side)  # (T, H, W, 3) -> (T, 3, H, W)

    return read


def plain_torchcodec(files: list[str], args: argparse.Namespace) -> Reader:
    """TorchCodec in its exact mode, a decoder per clip."""
    from torchcodec.decoders import VideoDecoder

    def read(number: int) -> Tensor:
        decoder = VideoDecoder(files[number], num_ffmpeg_threads=1)
        last = len(decoder) - (args.num_frames - 1) * args.frame_stride - 1
        first = int(torch.randint(0, last + 1, ()))
        places = [first + i * args.frame_stride for i in range(args.num_frames)]
        return _resize(decoder.get_frames_at(places).data, args.short_side)

    return read


WAYS: dict[str, Callable[[list[str], argparse.Namespace], Reader]] = {
    "this project, PyAV": ours("pyav"),
    "this project, TorchCodec": ours("torchcodec"),
    PEER: pytorchvideo,
    PLAIN: plain_pyav,
    "plain TorchCodec": plain_torchcodec,
}


def _length(file: str) -> int:
    with open_video(file, "pyav") as video:
        return len(video)


def _rate(file: str) -> float:
    with open_video(file, "pyav") as video:
        return video.index.fps


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with videos")
    parser.add_argument("--num_frames", type=int, default=16)
    parser.add_argument("--frame_stride", type=int, default=4)
    parser.add_argument("--short_side", type=int, default=224, help="pixels")
    parser.add_argument("--clips", type=int, default=12, help="clips per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", default="outputs/bench", help="folder of the table")
    return parser


if __name__ == "__main__":
    main()
