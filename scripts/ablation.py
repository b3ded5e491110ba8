"""Writes the tables and curves of docs/ablation.md from the runs of specs/ablation.

    python3 scripts/ablation.py [--snclr PROGRAM] [--runs DIR] [--specs DIR] [--page FILE] [--of SPEC]...

The prose of the page is written by hand. What stands between one of these lines and `<!-- end -->` is made anew:

    <!-- table SPEC... by KEY... [with OPTION...] -->
                                        a row for each setting of the specs, compared with the first; the KEYs tell them apart, and
                                        `snclr compare` gets the options
    <!-- seeds SPEC OPTION... / ... --> how far single seeds are apart, a row for each list of options of `snclr compare`
    <!-- correlations SPEC... -->       what goes with the score over all runs
    <!-- curves SPEC KEY=VALUE... -->   nothing; curves of the settings that have these values, in the folder images beside the page

With --of, only what names one of these specs is made anew: the rest may have no runs here. Each table ends with the command that shows
its figures. Needs pyarrow.
"""

import argparse
import json
import math
import re
import shlex
import statistics
import subprocess
from pathlib import Path

import pyarrow.parquet as parquet

# Columns beside the scores: heading, metric of a run, factor, digits.
POSITIVES = [
    ("effective positives", "train/effective_positives", 1, 1),
    ("weight in the own class, %", "train/same_class_mass", 100, 0),
    ("neighbours of the own class, %", "train/neighbour_agreement", 100, 0),
]
EXPLANATIONS = [*POSITIVES, ("neighbours that change", "train/churn", 100, 0), ("effective rank of the embeddings", "train/effective_rank", 1, 1)]
# Curves over training: file, title, table of the pretraining and its column.
CURVES = [
    ("ablation-largest-weight.svg", "Largest weight of a neighbour in the batch", "metrics", "max_positiveness"),
    ("ablation-effective-positives.svg", "Effective number of positives", "positiveness", "effective_positives"),
    ("ablation-own-class.svg", "Weight in the own class, other view included", "positiveness", "same_class_mass"),
]
COLOURS = ["#d62728", "#ff7f0e", "#9467bd", "#1f77b4", "#2ca02c", "#8c564b"]


class Runs:
    """The runs of specs, as `snclr compare` and the store have them."""

    def __init__(self, program, runs, specs):
        self.program, self.runs, self.specs = program, Path(runs), Path(specs)

    def command(self, specs, options=()):
        """What follows `snclr` to compare the runs of some specs."""
        return ["compare", *(str(self.specs / f"{spec}.yaml") for spec in specs), *options]

    def compare(self, specs, options=()):
        """The comparison as JSON, whose first column is that of the first spec's first point."""
        line = [self.program, "--runs", str(self.runs), *self.command(specs, options), "--json"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{shlex.join(line)}\n{done.stderr}")
        return json.loads(done.stdout)

    def columns(self, run, stage, table):
        """The columns of a table of the artifact that a run has of a stage."""
        record = json.loads((self.runs / "results" / run / "run.json").read_text())
        key = next(made["key"] for made in record["stages"] if made["stage"] == stage)
        return parquet.read_table(self.runs / "store" / stage / key / f"{table}.parquet").to_pydict()


def settings(comparison):
    """Label, spec values and runs of each column. A setting that several specs have in common counts once."""
    differing = [row for row in comparison["spec"] if row["key"] != "seed"]
    seen = []
    for group in comparison["groups"]:
        values = {row["key"]: row["values"].get(group["label"]) for row in differing}
        if values not in seen:
            seen.append(values)
            yield group["label"], values, group["runs"]


def score(comparison, metric, label):
    """Mean and deviation of a metric over the runs of a column; None if it has none."""
    for row in comparison["scores"]:
        if row["metric"] == metric and row["values"].get(label) is not None:
            return row["values"][label], row["groups"].get(label, {}).get("deviation")
    return None


def in_words(key, value):
    if key == "method.detach_w" and isinstance(value, bool):
        return "all" if value else "none"  # specs may say either
    return str(value).lower() if isinstance(value, bool) else "-" if value is None else str(value)


def shown(found, factor, digits):
    if found is None:
        return "-"
    mean, deviation = found
    return f"{factor * mean:.{digits}f}" + ("" if deviation is None else f" ± {factor * deviation:.{digits}f}")


def grid(header, rows, texts):
    """A Markdown table whose first columns, `texts` of them, are aligned to the left."""
    rules = ["---"] * texts + ["---:"] * (len(header) - texts)
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rules, *rows])


def block(runs, specs, options=()):
    return f"```\n{shlex.join(['snclr', *runs.command(specs, options)])}\n```"


def table(runs, words):
    """Scores of all settings, with the difference to the first. A key that has one value in all of them is shown as -."""
    by = words.index("by")
    end = words.index("with") if "with" in words else len(words)
    specs, keys, options = words[:by], words[by + 1 : end], words[end + 1 :]
    comparison = runs.compare(specs, options)
    header = [f"`{key}`" for key in keys] + ["seeds", "kNN top-1, %", "against the first", "linear top-1, %"]
    header += [heading for heading, *_ in POSITIVES]
    rows = []
    for label, values, members in settings(comparison):
        row = [in_words(key, values.get(key)) for key in keys] + [str(len(members))]
        row.append(shown(score(comparison, "knn/top1", label), 100, 1))
        row.append(against(comparison, label))
        row.append(shown(score(comparison, "linear/top1", label), 100, 1))
        for _, metric, factor, digits in POSITIVES:
            found = score(comparison, metric, label)
            row.append(shown(found and (found[0], None), factor, digits))
        rows.append(row)
    return grid(header, rows, len(keys)) + "\n\n" + block(runs, specs, options)


def against(comparison, label):
    """The difference of a column's kNN top-1 to the first column's, with its interval, in points."""
    for row in comparison["differences"]:
        if row["metric"] == "knn/top1" and row["compared"] == label:
            return "{:+.1f} [{:.1f}, {:.1f}]".format(*(100 * row[part] for part in ("difference", "low", "high")))
    return ""


def seeds(runs, words):
    """How far the kNN top-1 of single seeds is apart, a row for each list of options."""
    spec, *rest = words
    lists, rows = [[]], []
    for word in rest:
        if word == "/":
            lists.append([])
        else:
            lists[-1].append(word)
    for options in lists:
        comparison = runs.compare([spec], options)
        (label, _, members), *_ = settings(comparison)
        row = next(row for row in comparison["scores"] if row["metric"] == "knn/top1")
        found = [100 * row["groups"][label]["values"][run] for run in members]
        figures = (statistics.mean(found), statistics.stdev(found), min(found), max(found))
        name = " ".join(option for option in options if not option.startswith(("--", "seed=")))
        rows.append([name or "the base", str(len(found)), *(f"{figure:.1f}" for figure in figures)])
    header = ["setting", "seeds", "mean kNN top-1, %", "standard deviation", "least", "greatest"]
    commands = "\n".join(shlex.join(["snclr", *runs.command([spec], options)]) for options in lists)
    return grid(header, rows, 1) + f"\n\n```\n{commands}\n```"


def correlations(runs, specs):
    """Pearson's correlation of figures of the training with kNN top-1: over all runs, and over the means of settings."""
    comparison = runs.compare(specs)
    singles, means = [], []
    for label, _, members in settings(comparison):
        of = {row["metric"]: row for row in comparison["scores"]}
        value = lambda metric, run: of[metric]["groups"].get(label, {}).get("values", {}).get(run)
        singles += [{metric: value(metric, run) for metric in of} for run in members]
        means.append({metric: of[metric]["values"].get(label) for metric in of})
    rows = []
    for heading, metric, *_ in EXPLANATIONS:
        rows.append([heading.removesuffix(", %"), *correlation(singles, metric), *correlation(means, metric)])
    return grid(["figure of the training", "over runs", "runs", "over settings", "settings"], rows, 1) + "\n\n" + block(runs, specs)


def correlation(found, metric):
    """The correlation of a metric with kNN top-1, and the number of pairs."""
    pairs = [(one[metric], one["knn/top1"]) for one in found if one.get(metric) is not None and one.get("knn/top1") is not None]
    if len(pairs) < 3 or any(len(set(side)) < 2 for side in zip(*pairs)):
        return ["-", str(len(pairs))]
    return [f"{statistics.correlation(*zip(*pairs)):+.2f}", str(len(pairs))]


def curve(runs, members, name, column):
    """The mean of a column over runs, by epoch, as pairs."""
    by_step = {}
    for run in members:
        found = runs.columns(run, "pretrain", name)
        for epoch, value in zip(found["epoch"], found[column]):
            if value is not None:
                by_step.setdefault(epoch, []).append(value)
    return [(epoch, statistics.mean(values)) for epoch, values in sorted(by_step.items())]


def draw(title, named):
    """A chart of curves, with their names beside it."""
    width, height, left, bottom, right, top = 760, 300, 50, 40, 220, 34
    points = [point for _, points in named for point in points]
    last, most = max(x for x, _ in points), max(y for _, y in points)
    step = 10 ** math.floor(math.log10(most))
    step = next(part * step for part in (0.1, 0.2, 0.25, 0.5, 1) if most / (part * step) <= 6)
    highest = step * math.ceil(most / step - 1e-9)
    across = lambda x: left + (width - left - right) * x / last
    up = lambda y: height - bottom - (height - bottom - top) * y / highest
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/><text x="{left}" y="20" font-size="14">{title}</text>',
    ]
    for tick in range(round(highest / step) + 1):
        y = up(tick * step)
        svg.append(f'<path d="M{left} {y:.1f}H{width - right}" stroke="#ddd"/>')
        svg.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick * step:g}</text>')
    for epoch in range(math.ceil(last) + 1):
        if epoch <= last + 0.1:
            svg.append(f'<text x="{across(min(epoch, last)):.1f}" y="{height - bottom + 18}" text-anchor="middle">{epoch}</text>')
    svg.append(f'<text x="{(left + width - right) / 2}" y="{height - 6}" text-anchor="middle">epoch</text>')
    for number, (name, points) in enumerate(named):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
        svg.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = top + 12 + 20 * number
        svg.append(f'<path d="M{width - right + 12} {y - 4}h20" stroke="{colour}" stroke-width="2"/>')
        svg.append(f'<text x="{width - right + 38}" y="{y}">{name}</text>')
    return "\n".join([*svg, "</svg>", ""])


def curves(runs, words, folder):
    """Draws each of CURVES with one curve per setting of the specs that has the values KEY=VALUE."""
    specs = [word for word in words if "=" not in word]
    wanted = dict(word.split("=", 1) for word in words if "=" in word)
    chosen = []
    for _, values, members in settings(runs.compare(specs)):
        has = {key: in_words(key, value) for key, value in values.items()}
        if all(has.get(key, value) == value for key, value in wanted.items()):
            chosen.append((", ".join(value for key, value in has.items() if key not in wanted and value != "-"), members))
    folder.mkdir(exist_ok=True)
    for file, title, name, column in CURVES:
        named = [(label, curve(runs, members, name, column)) for label, members in chosen]
        named = [(label, points) for label, points in named if points]
        if named:
            (folder / file).write_text(draw(title, named))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snclr", default="snclr", help="the program")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--specs", default="specs/ablation")
    parser.add_argument("--page", default="docs/ablation.md", type=Path)
    parser.add_argument("--of", action="append", metavar="SPEC", help="make only what names this spec")
    args = parser.parse_args()
    runs = Runs(args.snclr, args.runs, args.specs)
    makers = {"table": table, "seeds": seeds, "correlations": correlations}

    def made(match):
        kind, *words = shlex.split(match["what"])
        if args.of and not set(args.of) & set(words):
            return match[0]
        if kind == "curves":
            curves(runs, words, args.page.parent / "images")
            return match[0]
        return f"<!-- {match['what']} -->\n\n{makers[kind](runs, words)}\n\n<!-- end -->"

    kinds = "|".join([*makers, "curves"])
    args.page.write_text(re.sub(rf"<!-- (?P<what>(?:{kinds}) [^\n]*?) -->\n.*?<!-- end -->", made, args.page.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    main()
