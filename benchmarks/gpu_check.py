"""Checks on one GPU: strategies, precisions, the three tasks, LoRA and graph capture, eager and compiled.

One command, under 10 minutes. Cells of strategies (ddp with NCCL, fsdp, fsdp2) are `lookupvit fit` with the shipped
configuration, resumed from each other; the rest trains on one batch (`gpu_check_direct.py`). Each is a process of its
own with a time limit. A cell that fails stands in the table with its error, and the exit code is 1.
Needs torch, torchvision, lightning, torchmetrics, jsonargparse and omegaconf; whatever else the project imports and is
not installed gets an empty stand-in (`gpu_check_standins.py`).

    python benchmarks/gpu_check.py                         # writes outputs/gpu_check/gpu_check.{json,md}
    python benchmarks/gpu_check.py --device cpu --quick    # to try the program out; Lightning's FSDP needs a GPU, and
                                                           # tracing stands in for graph capture, gloo for NCCL
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
STRATEGIES = ("ddp", "fsdp", "fsdp2")
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-mixed")
TASKS = ("image", "video", "caption")
GROUPS = ("strategies", "precisions", "tasks", "lora", "graph", "compiled", "resumes")
COLUMNS = ("cell", "result", "seconds", "ms/step", "images/s", "peak GB", "last loss", "val top-1", "steps",
           "difference")  # fmt: skip
# Two epochs of 10 steps. With a checkpoint every 15 steps, last.previous.ckpt is in the middle of the second epoch.
STEPS, PER_EPOCH, SAVE_EVERY = 20, 10, 15


def cells(strategies: list[str], quick: bool, groups: list[str]) -> list[dict]:
    """The cells to run, the most important first."""
    fit = {"kind": "fit", "compile": False, "resume": None}
    direct = {"kind": "direct", "task": "image", "precision": "bf16-mixed", "compile": False, "resume": None}
    eager = [{**direct, "precision": precision} for precision in PRECISIONS]
    found = {
        "strategies": [{**fit, "strategy": name} for name in strategies],
        "precisions": eager,
        "tasks": [{**direct, "task": task} for task in TASKS if task != "image"],
        "lora": [{**direct, "kind": "lora"}],
        "graph": [{**direct, "kind": "graph"}],
        "compiled": [{**cell, "compile": True} for cell in eager]
        + [{**fit, "strategy": name, "compile": True} for name in strategies if not quick],
        "resumes": [
            {**fit, "strategy": name, "resume": source}
            for source in strategies
            for name in strategies
            if not quick or (source, name) == (strategies[0], strategies[-1])
        ],
    }
    return [{**cell, "name": name_of(cell)} for group in GROUPS if group in groups for cell in found[group]]


def name_of(cell: dict) -> str:
    """Such as `fsdp2, compiled`, `ddp -> fsdp` or `video, bf16-mixed`."""
    if cell["resume"]:
        return f"{cell['resume']} -> {cell['strategy']}"
    compiled = ", compiled" if cell["compile"] else ""
    if cell["kind"] == "fit":
        return cell["strategy"] + compiled
    if cell["kind"] != "direct":
        return {"lora": "LoRA", "graph": "graph capture"}[cell["kind"]]
    return f"{cell['task']}, {cell['precision']}{compiled}"


def arguments(cell: dict, folder: Path, device: str, quick: bool) -> list[str]:
    """The command line of `lookupvit fit`."""
    batch, side = (4, 48) if quick else (64, 224)
    options = {
        "config": HERE.parent / "configs" / "demo.yaml",
        "output_dir": folder,
        "name": name_of(cell).replace(", ", "_").replace(" -> ", "_to_"),
        "save_every_n_steps": SAVE_EVERY,
        "trainer.max_epochs": STEPS // PER_EPOCH,
        "trainer.logger": "false",
        "trainer.enable_progress_bar": "false",
        "trainer.callbacks+": "gpu_check_standins.Watch",
        "data.root": folder / "data",
        "data.train_per_class": batch * PER_EPOCH // 10,
        "data.val_per_class": max(1, batch // 10),
        "data.batch_size": batch,
        "data.img_size": side,
        "data.num_workers": 0 if quick else 8,
        "model.compile": str(cell["compile"]).lower(),
        "model.warmup_epochs": 0,
    }
    argv = ["fit"]
    for key, value in options.items():
        argv += [f"--{key}={value}"]
        if key == "config":  # the pieces come after the experiment, and single options after them
            argv += [f"--config={HERE.parent / 'configs' / 'base' / cell['strategy']}.yaml"]
    if not quick:
        argv += ["--model.name=lookupvit_small_patch16_224", "--model.args=null", "--model.compressed_size=[5,5]"]
    argv += [f"--trainer.accelerator={device}", "--trainer.devices=1"]
    if device == "cpu":
        argv += ["--trainer.precision=32-true"]
    if cell["strategy"] == "fsdp2":
        argv += ["--trainer.strategy.init_args.data_parallel_size=1"]
    if cell["resume"]:
        argv += [f"--ckpt_path={checkpoint(folder, cell['resume'], 'last.previous.ckpt')}"]
    return argv


def checkpoint(folder: Path, name: str, file: str = "last.ckpt") -> Path:
    """A checkpoint of a training."""
    return folder / name / "version_0" / "checkpoints" / file


def run_here(cell: dict, folder: Path, device: str, quick: bool) -> None:
    """One cell, in this process; its figures go to a file."""
    import gpu_check_standins

    gpu_check_standins.install()
    if cell["kind"] != "fit":
        import gpu_check_direct

        figures = gpu_check_direct.run(cell, device, quick)
        (folder / "cell.json").write_text(json.dumps(figures))
        return
    import torch

    from lookupvit.cli.main import main as lookupvit

    code = lookupvit(arguments(cell, folder, device, quick))
    if code:
        sys.exit(code)
    figures = gpu_check_standins.Watch.figures
    own = name_of(cell).replace(", ", "_").replace(" -> ", "_to_")
    end = torch.load(next(folder.glob(f"{own}/**/last.ckpt")), map_location="cpu", weights_only=True)
    figures["steps"] = end["global_step"]
    if cell["resume"]:
        whole = torch.load(checkpoint(folder, cell["resume"]), map_location="cpu", weights_only=True)["state_dict"]
        pairs = [(value.float(), whole[name].float()) for name, value in end["state_dict"].items()]
        figures["difference"] = max(float((a - b).abs().max()) for a, b in pairs)
    finite = all(bool(value.isfinite().all()) for value in end["state_dict"].values())
    if not finite or figures["steps"] != STEPS:
        sys.exit(
            f"ended with {figures['steps']} steps of {STEPS}" + ("" if finite else " and weights that are not finite")
        )
    (folder / "cell.json").write_text(json.dumps(figures))


def run_apart(cell: dict, args: argparse.Namespace, limit: float) -> dict:
    """Runs one cell in a process group of its own; returns its result and figures."""
    result = args.output / "cell.json"
    result.unlink(missing_ok=True)
    argv = [sys.executable, *args.python_options, __file__, "--cell", json.dumps(cell), "--device", args.device]
    argv += ["--output", str(args.output), *(["--quick"] if args.quick else [])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])}
    begun = time.monotonic()
    log = args.output / "cell.log"
    with log.open("wb") as file:
        process = subprocess.Popen(argv, stdout=file, stderr=file, env=env, start_new_session=True)
        try:
            process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return {"result": f"FAILED: not done after {limit:.0f} s", "seconds": time.monotonic() - begun}
    seconds = time.monotonic() - begun
    if process.returncode or not result.is_file():
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        error = next((line for line in reversed(lines) if "rror" in line), lines[-1] if lines else "no output")
        return {"result": f"FAILED ({process.returncode}): {error[:300]}", "seconds": seconds}
    return {"result": "ok", "seconds": seconds, **json.loads(result.read_text())}


def table(rows: list[dict], title: str) -> str:
    """Markdown."""
    lines = [title, "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        values = [row.get(column, "") for column in COLUMNS]
        lines.append(
            "| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v).replace("|", "/") for v in values) + " |"
        )
    note = (
        "difference: largest difference of a weight between the resumed run and the end of the run whose checkpoint of "
        f"step {SAVE_EVERY} it went on from, {STEPS - SAVE_EVERY} steps later. "
        "Of a graph: between replay and model. ms/step: median of the last 8 steps, loader included."
    )
    return "\n".join([*lines, "", note, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny model and one resume")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="these groups of cells")
    parser.add_argument("--budget", type=float, default=570, help="seconds; no cell is started that may outlast them")
    parser.add_argument("--limit", type=float, default=120, help="seconds of one cell")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu_check"))
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--python_options", nargs="*", default=[], help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.output = args.output.absolute()
    if args.cell:
        run_here(json.loads(args.cell), args.output, {"cuda": "gpu"}.get(args.device, "cpu"), args.quick)
        return 0
    args.output.mkdir(parents=True, exist_ok=True)
    for old in args.output.glob("*/version_*"):  # left by an earlier check
        shutil.rmtree(old)
    begun, rows = time.monotonic(), []
    import torch

    device = "cpu" if args.device == "cpu" else torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    for cell in cells(args.strategies, args.quick, args.only):
        left = args.budget - (time.monotonic() - begun)
        if cell.get("strategy") == "fsdp" and args.device == "cpu":
            row = {"result": "not run: Lightning's FSDP needs a GPU"}
        elif cell["resume"] and not checkpoint(args.output, cell["resume"], "last.previous.ckpt").is_file():
            row = {"result": f"not run: {cell['resume']} left no checkpoint"}
        elif left < 10:
            row = {"result": f"not run: {args.budget:.0f} s are over"}
        else:
            row = run_apart(cell, args, min(args.limit, left))
        rows.append({"cell": cell["name"], **row})
        print(f"{time.monotonic() - begun:5.0f} s  {cell['name']}: {row['result']}", flush=True)
    title = f"gpu_check: {device}, torch {torch.__version__}, {time.monotonic() - begun:.0f} s" + (
        ", quick" if args.quick else ""
    )
    text = table(rows, title)
    (args.output / "gpu_check.json").write_text(json.dumps({"title": title, "rows": rows}, indent=1))
    (args.output / "gpu_check.md").write_text(text)
    print("\n" + text)
    on_cpu = args.device == "cpu"
    return int(any(row["result"] != "ok" and not (on_cpu and "needs a GPU" in row["result"]) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
