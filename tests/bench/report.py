"""Medians with their ranges, as Markdown for people and as JSON."""

import json
from statistics import median

from measure import DISTURBED_SHARE
from rows import MEMORY, ROWS

# The primary figure of a row is the first of these that it has.
PRIMARY = ("cpu_us", "cpu_s_per_gib", "kib_per_connection")
TITLES = {"none": "no proxy", "envoy": "Envoy pair", "naru": "Naru pair"}


def summary(rounds):
    """The median of each figure with NAME_min and NAME_max, the number of disturbed rounds, and
    all rounds.
    """
    names = [name for name, value in rounds[0].items() if not isinstance(value, bool)]
    figures = {}
    for name in names:
        values = [one[name] for one in rounds]
        figures[name] = median(values)
        figures[f"{name}_min"], figures[f"{name}_max"] = min(values), max(values)
    figures["disturbed_rounds"] = sum(one.get("disturbed", False) for one in rounds)
    figures["rounds"] = rounds
    return figures


def document(about, measured, failures):
    """All of a run. `measured` has the rounds of rows by configuration."""
    rows = {
        row: {name: summary(rounds) for name, rounds in by_name.items()}
        for row, by_name in measured.items()
    }
    return {**about, "failures": failures, "rows": rows}


def _number(value):
    """With three significant digits."""
    return (
        f"{value:,.0f}"
        if abs(value) >= 100
        else f"{value:.1f}"
        if abs(value) >= 10
        else f"{value:.2f}"
    )


def _cell(figures, name):
    if not figures or name not in figures:
        return "–"
    low, high = figures[f"{name}_min"], figures[f"{name}_max"]
    spread = f" ({_number(low)}–{_number(high)})" if len(figures["rounds"]) > 1 else ""
    return _number(figures[name]) + spread


def _table(heads, lines):
    widths = ["---"] * len(heads)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, widths, *lines)) + "\n"


def _primary_lines(rows):
    base = {name: figures.get("cpu_us") for name, figures in rows.get("h1", {}).items()}
    for row in ROWS:
        measured = rows.get(row.key)
        if not measured:
            continue
        any_of = next((figures for name, figures in measured.items() if name != "none"), {})
        name = next((name for name in PRIMARY if name in any_of), None)
        envoy, naru = measured.get("envoy"), measured.get("naru")
        ratio = "–"
        if name and envoy and naru and name in envoy and name in naru and envoy[name]:
            ratio = f"{naru[name] / envoy[name]:.2f}"
        against = "–"
        if row.key.startswith("h1_") and row.variant.name != "plain" and naru and base.get("naru"):
            against = f"{naru['cpu_us'] / base['naru']:.2f}"
        yield [
            row.title,
            row.unit,
            _cell(envoy, name),
            _cell(naru, name),
            ratio,
            against,
            _disturbed(measured),
        ]


def _disturbed(measured):
    said = [
        f"{name} {figures['disturbed_rounds']} of {len(figures['rounds'])}"
        for name, figures in measured.items()
        if figures["disturbed_rounds"]
    ]
    return ", ".join(said) or "none"


def _rate_lines(rows):
    for row in ROWS:
        for name, figures in rows.get(row.key, {}).items():
            if row.variant.name != "fresh":
                rate = "gib_per_s" if "gib_per_s" in figures else "rate"
                unit = "GiB/s" if rate == "gib_per_s" else "/s"
                latencies = [_cell(figures, latency) for latency in ("p50_us", "p99_us", "p999_us")]
                yield [row.title, TITLES[name], f"{_cell(figures, rate)} {unit}", *latencies]


def markdown(run):
    """The tables, with the machine and the versions."""
    rows, machine = run["rows"], run["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    disturbed = sum(
        figures["disturbed_rounds"] for by_name in rows.values() for figures in by_name.values()
    )
    count = sum(len(figures["rounds"]) for by_name in rows.values() for figures in by_name.values())
    parts = [
        "# Naru and Envoy, in the same run\n",
        f"{run['date']}, {machine['cores']} × {machine['cpu']}, {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}. {versions}. "
        f"Naru's programs: {run['programs']}. {run['rounds']} round(s), {run['seconds']} s "
        "each load, configurations in turns.\n",
        "## CPU time (user and system) of both proxies\n",
        "Median of the rounds (min–max).\n",
        _table(
            [
                "work",
                "unit",
                "Envoy pair",
                "Naru pair",
                "Naru / Envoy",
                "Naru / its first row",
                "rounds disturbed",
            ],
            _primary_lines(rows),
        ),
    ]
    if MEMORY in rows:
        names = {
            "idle_mib": "idle",
            "load_mib": "under the load of the first row (peak)",
            "after_mib": "5 s after it",
        }
        pairs = [rows[MEMORY].get(pair) for pair in ("envoy", "naru")]
        lines = [
            [title, *(_cell(figures, name) for figures in pairs)] for name, title in names.items()
        ]
        parts += [
            "## Resident memory of both proxies, MiB\n",
            _table(["when", "Envoy pair", "Naru pair"], lines),
        ]
    parts += [
        "## Rates, and latencies in µs at the fixed rate\n",
        "Wall time on cores that load, servers and proxies share: CPU time above is what counts.\n",
        _table(["work", "configuration", "rate", "p50", "p99", "p99.9"], _rate_lines(rows)),
        f"{disturbed} of {count} measurements were disturbed: others used, or the hypervisor took, "
        "more than "
        f"{DISTURBED_SHARE:.0%} of the machine's CPU time.\n",
    ]
    if run["failures"]:
        parts += [
            "## Failed\n",
            "\n".join(f"* {failure.splitlines()[0]}" for failure in run["failures"]) + "\n",
        ]
    return "\n".join(parts)


def write(directory, run):
    """Writes both files, and returns their paths."""
    paths = directory / "report.md", directory / "report.json"
    paths[0].write_text(markdown(run))
    paths[1].write_text(json.dumps(run, indent=1) + "\n")
    return paths
