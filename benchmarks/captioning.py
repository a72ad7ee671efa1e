"""Times the writing of captions: with and without the key-value cache, from compressed or from lookup tokens.

    python benchmarks/captioning.py --threads 2 --output outputs/bench

Only generation is timed: beam search over all images in one batch, with random weights, random features, and texts of
exactly --length tokens. The variants take turns in one process; medians are printed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from lookupvit.bench.report import Report, environment
from lookupvit.model.caption.decoder import Decoder
from lookupvit.model.caption.generation import Generation, Special, generate

SPECIAL = Special(bos=2, eos=3, pad=0, banned=(1,))


def main() -> None:
    args = _parser().parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    decoder = Decoder(args.vocab_size, args.width, depth=args.depth, num_heads=args.width // 64).to(device).eval()
    how = Generation("beam", args.beams, min_length=args.length, max_length=args.length)
    memory = {count: torch.randn(args.images, count, args.width, device=device) for count in args.tokens}

    def variant(count: int, cached: bool) -> Callable[[], None]:
        def run() -> None:
            texts = generate(decoder, memory[count], SPECIAL, how, cached)
            assert len(texts) == args.images and all(len(text[0].tokens) == args.length for text in texts)

        return run

    runs = {f"{count} tokens, cached": variant(count, True) for count in args.tokens}
    if not args.cached_only:
        runs[f"{args.tokens[0]} tokens, not cached"] = variant(args.tokens[0], False)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(args.rounds + 1):  # the first one warms up
        for name, run in runs.items():
            _finish(device)
            start = time.perf_counter()
            run()
            _finish(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    _report(args, seconds)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _report(args: argparse.Namespace, seconds: dict[str, list[float]]) -> None:
    first = statistics.median(next(iter(seconds.values())))
    rows = []
    for name, values in seconds.items():
        middle = statistics.median(values)
        figures = {"s": middle, "fastest": min(values), "slowest": max(values), "images/s": args.images / middle}
        rows.append({"variant": name, **figures, "times the first": middle / first})
    title = (
        f"{args.images} captions of {args.length} tokens, beam {args.beams}; decoder of {args.depth} blocks, "
        f"width {args.width}, {args.vocab_size} tokens; {args.rounds} rounds"
    )
    report = Report(title, rows, environment(args.device))
    report.show()
    if args.output:
        report.save(args.output, "captioning", picture=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--length", type=int, default=20, help="tokens of each text (20)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[25, 196], help="tokens that the decoder reads")
    parser.add_argument("--width", type=int, default=768, help="width of decoder and features, a multiple of 64 (768)")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--vocab_size", type=int, default=32000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cached_only", action="store_true", help="leave out the slow variant")
    parser.add_argument("--output", type=Path, help="folder of the table")
    return parser


if __name__ == "__main__":
    main()
