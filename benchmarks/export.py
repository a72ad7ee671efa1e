"""Throughput of eager, compiled and exported models on a CPU, timed in turns: `python benchmarks/export.py --help`."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from lookupvit import create_model, export_model
from lookupvit.bench.report import Report, environment
from lookupvit.bench.suites import timing_columns
from lookupvit.bench.timing import MIN_ROUNDS, interleave
from lookupvit.cli.common.arguments import OneLineParser
from lookupvit.grid import parse_size, size_name
from lookupvit.interop.program import Program


def main(argv: list[str]) -> None:
    """Exports, compares outputs, times, and writes one table."""
    parser = OneLineParser(prog="benchmarks/export.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--models", nargs="+", default=["lookupvit_small_patch16_224", "vit_small_patch16_224"])
    parser.add_argument("--compressed_size", type=parse_size, default=(5, 5), metavar="HxW")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=MIN_ROUNDS)
    parser.add_argument("--output", default="outputs/bench", help="folder of the table")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    about = environment("cpu") | {"batch": args.batch}
    report = Report("Eager, compiled and exported", settings=about, groups=["model"])
    for name in args.models:
        model = create_model(name).eval()
        if model.compressed_size is not None:
            model.compressed_size = tuple(args.compressed_size)
        images = torch.randn(args.batch, 3, *model.img_size)
        cases, differences = _cases(model, images, args.threads)
        timings = interleave(cases, "eager", args.rounds, min_seconds=0.2, items=dict.fromkeys(cases, args.batch))
        for case, timing in timings.items():
            report.rows.append(
                {
                    "model": name,
                    "compressed": size_name(model.compressed_size) if model.compressed_size else "-",
                    "way": case,
                    "largest difference": differences[case],
                    **timing_columns(timing),
                }
            )
    report.show()
    print("wrote", *report.save(args.output, "export", picture=False))


def _cases(model: torch.nn.Module, images: torch.Tensor, threads: int) -> tuple[dict, dict[str, float]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        difference = export_model(model, Path(folder) / "x.onnx")
        session = onnxruntime.InferenceSession(Path(folder) / "x.onnx", options, providers=["CPUExecutionProvider"])
    eager = Program(model)
    compiled = torch.compile(Program(model), dynamic=False)
    pixels = images.numpy()
    with torch.inference_mode():
        expected = eager(images)
        off = float((compiled(images) - expected).abs().max() / expected.abs().max().clamp(min=1))

    def run(function):
        def call():
            with torch.inference_mode():
                return function(images)

        return call

    cases = {"eager": run(eager), "compiled": run(compiled)}
    cases["onnxruntime"] = lambda: session.run(None, {"images": pixels})
    return cases, {"eager": 0.0, "compiled": off, "onnxruntime": difference}


if __name__ == "__main__":
    main(sys.argv[1:])
