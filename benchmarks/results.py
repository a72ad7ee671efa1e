"""The tables of docs/RESULTS.md from the kept logs: python benchmarks/results.py [--check].

docs/results/NAME.json is written by `lookupvit compare`, `sweep`, `ablate` or a benchmark. Each gives these tables:

    compare   NAME
    sweep     NAME (one model for all sizes against one model per size) and NAME_everywhere (each model at every size)
    ablate    NAME
    robustness NAME (clean, corrupted, by family) and NAME_sets (each corruption and each shift)
    benchmark NAME, from what `lookupvit.bench.report.Report` saved, with its command added

They go between <!-- table: NAME --> and <!-- end -->, with command, hardware and seeds. Other text is not changed.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev

from datamodules.robustness.imagenet_c import FAMILIES
from lookupvit.bench.report import Report, settings_line

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(?=<!-- end -->)", re.DOTALL)

SEED = re.compile(r"_seed(\d+)")  # in the name of a model

PAPER = "the paper's claim"
CLAIMS = {  # by a part of the log's name: only what docs/REPRODUCTION.md quotes
    "video": "SSv2: 5 to 6 points above ViViT at half of the operations",
    "imagenette_c": "ImageNet-C, -R, -A, -O: up to 4 points above ViT",
    "cifar10c": "ImageNet-C, -R, -A, -O: up to 4 points above ViT",
}


def tables(folder: Path) -> dict[str, str]:
    """Markdown of every table by name.

    Raises:
        ValueError: For a file that is no kept log, in one line.
    """
    found = {}
    for file in sorted(folder.glob("*.json")):
        document = json.loads(file.read_text(encoding="utf-8"))
        claim = next((claim for part, claim in CLAIMS.items() if part in file.stem), "none at hand for this data")
        if not isinstance(document, dict) or "command" not in document:
            raise ValueError(
                f"{file}: no kept log: no command in it; expected the JSON of compare, sweep, ablate or of a benchmark"
            )
        if "baseline" in document:
            found[file.stem] = _about(document) + _ablation(document, claim)
        elif "trainings" in document:
            found[file.stem] = _about(document) + _multi(document, claim)
            alone = {key: value for key, value in document.items() if key != "seed1"}  # has no figures of other sizes
            found[f"{file.stem}_everywhere"] = _about(alone) + _sizes(document, claim)
        elif "models" in document:
            found[file.stem] = _about(document) + _robustness(document, claim)
            found[f"{file.stem}_sets"] = _about(document) + _robustness_sets(document)
        elif "title" in document:
            found[file.stem] = _benchmark(document)
        elif "runs" in document:
            found[file.stem] = _about(document) + _comparison(document, claim)
        else:
            raise ValueError(f"{file}: no rows of compare, sweep or ablate in it")
    return found


def filled(text: str, made: dict[str, str]) -> str:
    """The document with its tables replaced.

    Raises:
        ValueError: Where a table has no log or a log has no place, in one line.
    """
    names = [match["name"] for match in BLOCK.finditer(text)]
    if missing := sorted(set(names) - set(made)):
        raise ValueError(f"table {missing[0]}: no log makes it; there are {', '.join(made)}")
    if unused := sorted(set(made) - set(names)):
        raise ValueError(f"table {unused[0]}: add <!-- table: {unused[0]} --> and <!-- end --> to the document")
    return BLOCK.sub(lambda match: match[1] + "\n" + made[match["name"]] + "\n", text)


def cell(values: list[float], sign: str = "") -> str:
    """Mean ± standard deviation over the seeds, or the one figure."""
    if not values:
        return "not trained"
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.2f}{spread}"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]]) + "\n"


def _about(document: dict) -> str:
    place = document.get("environment", {})
    hardware = document.get("hardware") or f"{place['device']}, {place['threads']} threads"
    if "baseline" in document:
        seeds = [run["seed"] for run in document["runs"][document["baseline"]]]
    elif "models" in document:
        seeds = sorted({int(match[1]) for one in document["models"] if (match := SEED.search(one["model"]))})
    elif "trainings" in document:
        seeds = sorted({one["seed"] for one in document["trainings"]} | ({1} if "seed1" in document else set()))
    else:
        seeds = [document["seed"]]
    listed = ", ".join(map(str, seeds))
    torch = document.get("torch") or place["torch"]
    later = f" Seed 1, run later: {document['seed1']['note']}." if "seed1" in document else ""
    which = f"; seed{'s' * (len(seeds) > 1)} {listed}" if seeds else ""
    return f"`{document['command']}`; {hardware}; torch {torch}{which}.{later}\n\n"


def _benchmark(document: dict) -> str:
    command = document.pop("command")
    report = Report(**document)
    notes = "".join(f" {note}." for note in report.notes)
    return f"`{command}`; {settings_line(report.settings)}.{notes}\n\n" + _table(report.columns, report.cells())


def _comparison(document: dict, claim: str) -> str:
    rows = []
    for name, series in document["runs"].items():
        figures = [series.get(f"val/top1{head}") for head in ("", "_compressed", "_lookup")]
        shown = [f"{100 * one[-1][1]:.2f}" if one else "" for one in figures]
        rows.append([name, str(series["val/top1"][-1][0]), *shown, "" if rows else claim])
    return _table(["run", "steps", "top-1 %, both heads", "compressed head", "lookup head", PAPER], rows)


def _multi(document: dict, claim: str) -> str:
    macs = {tuple(row["compressed_size"]): row["macs"] for row in document["rows"]}
    rows = []
    for one in document["multi_against_single"]:
        name = "x".join(map(str, one["size"]))
        single, multi, apart = list(one["single"]), list(one["multi"]), list(one["difference"])
        later = document.get("seed1", {"multi": {}, "single": {}})  # scored later, in a sweep of its own
        multi += [later["multi"][name]] if name in later["multi"] else []
        if name in later["single"]:
            single.append(later["single"][name])
            apart.append(later["multi"][name] - later["single"][name])
        count = f"{len(single)}, {len(multi)}"
        rows.append(
            [
                name,
                f"{macs[tuple(one['size'])] / 1e6:.1f}",
                cell(single),
                cell(multi),
                cell(apart, "+"),
                count,
                "" if rows else claim,
            ]
        )
    header = ["compressed", "MMACs", "one model per size", "all sizes", "difference by seed", "seeds of each", PAPER]
    return _table(header, rows)


def _sizes(document: dict, claim: str) -> str:
    models = [one["name"] for one in document["trainings"]]
    top1 = {(row["model"], tuple(row["compressed_size"])): row["top1"] for row in document["rows"]}
    sizes = dict.fromkeys(size for _, size in top1)
    rows = [["x".join(map(str, size)), *(f"{top1[model, size]:.2f}" for model in models), ""] for size in sizes]
    rows[0][-1] = claim
    return _table(["tested at", *models, PAPER], rows)


def _ablation(document: dict, claim: str) -> str:
    rows = []
    base = document["runs"][document["baseline"]]
    for name, runs in document["runs"].items():
        apart = [run["top1"] - other["top1"] for run, other in zip(runs, base, strict=True)]
        seconds = [run["seconds"] for run in runs if run["seconds"] is not None]
        rows.append(
            [
                name,
                runs[0]["compressed_size"] or "-",
                f"{runs[0]['parameters'] / 1e6:.2f} M",
                f"{1000 * runs[0]['gmacs']:.3g}",
                cell([run["top1"] for run in runs]),
                "" if name == document["baseline"] else cell(apart, "+"),
                f"{mean(seconds):.0f}" if seconds else "-",
                "" if rows else claim,
            ]
        )
    header = ["variant", "compressed", "parameters", "MMACs", "top-1 %", "difference by seed", "training, s", PAPER]
    return _table(header, rows)


def _by_variant(document: dict) -> dict[tuple[str, str | None], list[dict]]:
    """The models of `lookupvit robustness` by name without seed and by compressed size, in order of their seeds."""
    found: dict[tuple[str, str | None], list[dict]] = {}
    for one in document["models"]:
        found.setdefault((SEED.sub("", one["model"]), one["compressed_size"]), []).append(one)
    return found


def _of_family(model: dict, family: list[str]) -> float:
    return mean(mean(model["top1_by_severity"][name]) for name in family)


def _robustness(document: dict, claim: str) -> str:
    variants = _by_variant(document)
    base = next(iter(variants.values()))
    families = {name: parts for name, parts in FAMILIES.items() if set(parts) <= set(base[0]["top1_by_severity"])}
    rows = []
    for (name, size), models in variants.items():
        apart = [one["corrupted"] - other["corrupted"] for one, other in zip(models, base, strict=False)]
        rows.append(
            [
                name,
                size or "-",
                f"{1000 * models[0]['gmacs']:.4g}",
                cell([one["clean"] for one in models]),
                cell([one["corrupted"] for one in models]),
                "" if models is base else cell(apart, "+"),
                cell([one["relative_drop"] for one in models]),
                *(cell([_of_family(one, parts) for one in models]) for parts in families.values()),
                f"{mean(one['corrupted_error'] for one in models):.2f}",
                "" if rows else claim,
            ]
        )
    header = ["model", "compressed", "MMACs", "clean, top-1 %", "corrupted", "difference by seed", "relative drop, %"]
    return _table([*header, *families, "error of the images", PAPER], rows)


def _robustness_sets(document: dict) -> str:
    variants = _by_variant(document)
    first = document["models"][0]
    names = [f"{name} {size}" if size else name for name, size in variants]
    rows = [[one, *(cell([m["sets"][one] for m in models]) for models in variants.values())] for one in first["sets"]]
    for part in first["top1_by_severity"]:
        rows.append([part, *(cell([mean(m["top1_by_severity"][part]) for m in ms]) for ms in variants.values())])
    return _table(["top-1 % on", *names], rows)


def main() -> int:
    """Writes docs/RESULTS.md; with --check it only says whether the tables are those of the logs."""
    parser = argparse.ArgumentParser(description="tables of docs/RESULTS.md from docs/results/*.json")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a table is not up to date")
    args = parser.parse_args()
    file = DOCS / "RESULTS.md"
    before = file.read_text(encoding="utf-8")
    try:
        after = filled(before, tables(DOCS / "results"))
    except ValueError as error:
        print(f"results: {error}", file=sys.stderr)
        return 2
    if not args.check:
        file.write_text(after, encoding="utf-8")
    elif after != before:
        print("results: docs/RESULTS.md is not what the logs give: run python benchmarks/results.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
