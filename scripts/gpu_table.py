"""The table of scripts/gpu-check.sh: what was measured on both sides, beside what is asked for.

    python3 scripts/gpu_table.py [--parts PARTS] [--json OUT] FILE...
    python3 scripts/gpu_table.py --markdown OUT        the table of a file that --json wrote, for docs/benchmarks.md

Each FILE is JSON of `snclr bench`, of benches/gpu.rs or of scripts/bench_reference.py; one that is empty or was cut off is left
out. PARTS has a JSON object per line: part, result, seconds. Prints the table; OUT gets it as JSON. Needs nothing but Python.
"""

import argparse
import json
from pathlib import Path

# Case and precision: how many times as fast as PyTorch it has to be, and is meant to be.
BARS = {("resnet50", "f16"): (1.0, 1.3), ("resnet18", "f16"): (1.0, 1.3), ("vit_small", "f16"): (1.0, 1.3), ("queue", "f32"): (1.0, 3.0)}
# Case of a training from encoded images: the share of its time that it may wait for them.
WAITING = {"epoch-imagenet": 0.05}
# Parts that are a check as a whole, and what is checked.
PARTS = {
    "doctor": "the doctor finds the device fit",
    "half": "dfdx's operations and training in f16 and AMP as in f32 on the CPU",
    "kernels": "every kernel test of the CPU on the GPU",
    "library-kernels": "every kernel test of the CPU on the GPU, with cuBLASLt's products",
    "resume": "killed and resumed to the same bits",
    "memcheck": "no kernel test reads or writes where it must not",
    "racecheck": "no kernel test has a race",
}
# The rows of benches/gpu.rs by how their names begin or end, and what they check together.
CHECKS = {
    "dfdx's operations and training in f32 as on the CPU": lambda name: name.startswith("dfdx:"),
    "ours on dfdx's tape as on the CPU": lambda name: name.startswith("ours:"),
    "whole steps as on the CPU": lambda name: name.startswith("a step of"),
    "restored trainers go on to the same bits": lambda name: "resumes to the same bits" in name,
    "one rank with NCCL comes to the bits of one without": lambda name: "with NCCL as without" in name,
}
HEADER = ["what", "ours", "PyTorch", "ratio", "bar", "aim", "met?"]


def read(path):
    """Cases and checks of a file; nothing of one that is no JSON, as a part that ran out of time leaves it."""
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, json.JSONDecodeError):
        return [], []
    return found.get("cases", []), found.get("rows", [])


def read_parts(path):
    if path is None:
        return []
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def is_ours(case):
    return case["version"].startswith("snclr")


def key(case):
    """Both sides say what they did in the same words. Only ours may name a library for products."""
    return case["case"], case["precision"], case["device"].split(":")[0], case["what"], library_of(case)


def library_of(case):
    """The library that computed our products, e.g. `cuBLASLt 130100`; nothing where our kernels did."""
    return case["device"].partition(", ")[2] if is_ours(case) else ""


def sides(cases):
    """The first figure of ours by what was done; the best of the others beside it."""
    ours, theirs = {}, {}
    for case in cases:
        if is_ours(case):
            ours.setdefault(key(case), case)
        elif key(case) not in theirs or milliseconds(case) < milliseconds(theirs[key(case)]):
            theirs[key(case)] = case
    return ours, theirs


def milliseconds(case):
    return case["milliseconds"]["median"]


def speed(case, flops=None, name=False):
    """A figure for people; `flops` are those of the same model on our side, from which the utilisation follows."""
    if case is None:
        return "not run"
    rate = case["images_per_second"]
    parts = [f"{rate['median']:.0f} images/s" if rate else f"{milliseconds(case):.2f} ms"]
    if flops and rate:
        tflops = rate["median"] * flops["gflop_per_image"] / 1e3
        parts.append(f"{tflops:.4g} TFLOP/s")
        if flops["utilisation"]:
            parts.append(f"MFU {100 * flops['utilisation'] * tflops / flops['tflops']:.1f} %")
    if name:
        compiled = " compiled" if "compiled" in case["version"] else " eager" if rate else ""
        parts.append(" ".join(case["version"].split(",")[0].split()[:2]) + compiled)
    return ", ".join(parts)


def compared(what, ours, theirs, bar, aim):
    """A row of two measurements, of which either may be missing."""
    flops = ours and ours["flops"]
    ratio = milliseconds(theirs) / milliseconds(ours) if ours and theirs else None
    met = None
    if bar is not None:
        met = "not run" if ratio is None else "aim" if ratio >= aim else "bar" if ratio >= bar else "no"
    return {
        "what": what,
        "ours": speed(ours, flops),
        "pytorch": speed(theirs, flops, name=True),
        "ratio": ratio,
        "bar": bar,
        "aim": aim,
        "met": met,
        "measured": {"ours": ours, "pytorch": theirs},
    }


def checked(what, result):
    """A row of something that is right or wrong, or was not run."""
    met = {"ok": "yes", "not run": "not run"}.get(result.split(",")[0], "no")
    return {"what": what, "ours": result, "pytorch": None, "ratio": None, "bar": "right", "aim": None, "met": met}


def rows_of_checks(parts, checks):
    by_name = {part["part"]: part for part in parts}
    for what, belongs in CHECKS.items():
        found = [check for check in checks if belongs(check["what"])]
        right = sum(check["result"] == "ok" for check in found)
        state = "ok" if found and right == len(found) else "not run" if not found else "failed"
        yield checked(what, f"{state}, {right} of {len(found)}" if found else state)
    for name, what in PARTS.items():
        part = by_name.get(name, {"result": "not run"})
        seconds = f", {part['seconds']} s" if part.get("seconds") is not None else ""
        yield checked(what, part["result"] + seconds)


def rows_of_speed(cases):
    ours, theirs = sides(case for case in cases if case["waiting_share"] is None)
    done = {key[:2] for key in [*ours, *theirs]}
    for (case, precision), (bar, aim) in BARS.items():
        if (case, precision) not in done:
            yield compared(f"{case} ({precision})", None, None, bar, aim)
    for found in sorted({**ours, **theirs}, key=lambda key: key[:2] not in BARS):
        case, precision, _, what, library = found
        bar, aim = BARS.get((case, precision), (None, None))
        by = f", {library}" if library else ""
        yield compared(f"{what} ({precision}{by})", ours.get(found), theirs.get((*found[:4], "")), bar, aim)


def rows_of_waiting(cases):
    found = {case["case"]: case for case in cases if case["waiting_share"] is not None}
    for name, most in WAITING.items():
        case = found.pop(name, None)
        share = case and case["waiting_share"]
        yield {
            "what": f"waiting for images from JPEG in Parquet ({name})",
            "ours": f"{100 * share:.1f} %, {speed(case)}" if case else "not run",
            "pytorch": None,
            "ratio": None,
            "bar": f"< {100 * most:.0f} %",
            "aim": None,
            "met": "not run" if case is None else "yes" if share < most else "no",
            "measured": {"ours": case},
        }


def printed(value):
    if value is None:
        return "-"
    return f"{value:.2f}x" if isinstance(value, float) else str(value)


def table(rows):
    cells = [HEADER] + [[printed(row[name]) for name in ("what", "ours", "pytorch", "ratio", "bar", "aim", "met")] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADER))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
    lines.insert(1, "-+-".join("-" * width for width in widths))
    return "\n".join(lines)


def markdown(rows):
    """The rows that measure something, as a table for the documentation."""
    measured = [row for row in rows if row.get("measured")]
    lines = ["| what | ours | PyTorch | ratio | bar |", "|---|---|---|---|---|"]
    for row in measured:
        lines.append("| " + " | ".join(printed(row[name]) for name in ("what", "ours", "pytorch", "ratio", "bar")) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("--parts", metavar="PARTS")
    parser.add_argument("--json", metavar="OUT")
    parser.add_argument("--markdown", metavar="OUT")
    args = parser.parse_args()
    if args.markdown:
        print(markdown(json.loads(Path(args.markdown).read_text())["rows"]))
        return
    parts, cases, checks = read_parts(args.parts), [], []
    for path in args.files:
        more_cases, more_checks = read(path)
        cases += more_cases
        checks += more_checks
    rows = [*rows_of_checks(parts, checks), *rows_of_speed(cases), *rows_of_waiting(cases)]
    print(table(rows))
    left_out = [part for part in parts if part["result"] != "ok"]
    for part in left_out:
        why = f": {part['why']}" if part.get("why") else ""
        print(f"{part['part']}: {part['result']}{why}")
    if args.json:
        Path(args.json).write_text(json.dumps({"rows": rows, "parts": parts, "checks": checks}, indent=1) + "\n")


if __name__ == "__main__":
    main()
