"""
What a benchmark prints, and the part of docs/benchmarks.md that is made of the files in benchmarks/results:

    python -m benchmarks.engines.report

replaces what stands between the two comments that begin with `engines` there.
"""

import sys

from benchmarks.engines.figures import DIRECT_SUFFIX
from benchmarks.engines.process import ROOT
from benchmarks.engines.results import Results, SystemResult, read_results

RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- engines: begin -->", "<!-- engines: end -->"

PICTURES = ("throughput-by-length", "latency-by-load", "cost")

GOALS = {
    "cpu_mixed_vs_flagembedding": "at least 8",
    "cpu_mixed_vs_sentence_transformers": "at least 4",
    "cpu_mixed_vs_best_other": "at least 1.8",
    "cpu_share_of_matmul": "at least 0.7",
    "cpu_grpc_vs_direct": "at least 0.92",
    "cpu_p99_100_chars_s": "at most 0.3",
    "cpu_short_p50_vs_bare": "at most 1.3",
    "gpu_512_share_of_matmul": "at least 0.6",
    "gpu_mixed_share_of_matmul": "at least 0.5",
    "gpu_mixed_vs_flagembedding": "at least 3",
    "gpu_fp8_vs_fp16": "at least 1.3",
    "gpu_short_texts_per_s": "at least 25,000",
    "gpu_8192_peak_gb": "at most 16",
}


def print_report(results: Results) -> None:
    """The table, and last the figures as `name value`."""
    chosen = results.system(results.chosen)
    width = max(len(result.name) for result in results.systems)
    print()
    for result in results.systems:
        mark = "*" if result is chosen else " "
        if result.failure is not None:
            print(f"{mark} {result.name:{width}}  not measured: {result.failure}")
            continue
        cells = f"{_number(result.tokens_per_s):>9} tokens/s  {result.outputs:9}  {_megabytes(result.memory_mb):>9}"
        print(f"{mark} {result.name:{width}}  {cells}  {result.settings}")
    print(f"* what `auto` chooses here; a million tokens cost {_cost(results, chosen)} with it")
    for precision, rates in results.matmul.items():
        print(f"  plain matrix product, {precision}: {max(rates) / 1e9:,.0f} GFLOP/s")
    for note in results.notes:
        print(f"  {note}")
    for name, value in results.figures.items():
        print(f"{name} {value:.4g}")


def make_section(results: list[tuple[str, Results]]) -> str:
    """The generated part of the document, of (file stem, results)."""
    return "\n\n".join(_section(stem, each) for stem, each in results)


def fill_document(document: str, section: str) -> str:
    """
    The document with a new section between the two comments.

    Raises:
        ValueError: the document does not have them, in this order.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"docs/benchmarks.md must have the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


def _section(stem: str, results: Results) -> str:
    machine, workload = results.machine, results.workload
    place = "GPU" if results.kind == "gpu" else "CPU"
    lines = [f"### {place}: {machine.get('gpu') or machine['processor']}", "", _machine_line(results), ""]
    corpus = (
        f"Mixed corpus: {workload['texts']} texts, {workload['tokens']:,} tokens (lognormal, up to "
        f"{workload['longest']} in a text, half Chinese), seed {workload['seed']}; {workload['model']}. Medians of "
        f"{workload['rounds']} rounds in which every system had its turn."
    )
    lines += [
        corpus,
        "",
        "| system | outputs | tokens/s | against it | memory | settings |",
        "|---|---|---|---|---|---|",
        *(_row(result, results) for result in results.systems),
        "",
        f"**{results.chosen}** is what `auto` chooses here; *against it*: its tokens per second over the system's."
        + _cosine_line(results),
    ]
    lines += ["", "| figure | seen | goal |", "|---|---|---|"]
    lines += [f"| `{name}` | {value:.4g} | {GOALS.get(name, '')} |" for name, value in results.figures.items()]
    lines += _latency_lines(results) + _length_lines(results)
    failed = [result for result in results.systems if result.failure is not None]
    lines += [""] * bool(failed) + [f"- {result.name} was not measured: {result.failure}" for result in failed]
    lines += [""] * bool(results.notes) + [f"- {note}" for note in results.notes]
    for name in PICTURES:
        path = RESULTS / f"{results.kind}-{stem}-{name}.svg"
        if path.exists():
            lines += ["", f"![{name.replace('-', ' ')}](../benchmarks/results/{path.name})"]
    return "\n".join(lines)


def _machine_line(results: Results) -> str:
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    instructions = ", ".join(machine["instructions"]) or "none that matter here"
    products = "; ".join(
        f"{precision} {sorted(rates)[len(rates) // 2] / 1e9:,.0f} GFLOP/s"
        for precision, rates in results.matmul.items()
    )
    return (
        f"{machine['date']}: {machine['processor']}, {machine['cores']} cores, {instructions}; "
        f"{machine['memory_gib']} GiB; {machine['system']}; {versions}. Plain large matrix product: {products}."
    )


def _row(result: SystemResult, results: Results) -> str:
    name = f"**{result.name}**" if result.name == results.chosen else result.name
    if result.failure is not None:
        return f"| {name} | {result.outputs} | not measured | | | |"
    chosen = results.system(results.chosen)
    mine = None if chosen is None else chosen.tokens_per_s
    against = f"{mine / result.tokens_per_s:.2f}" if mine and result.tokens_per_s else ""
    cells = (result.outputs, _number(result.tokens_per_s), against, _megabytes(result.memory_mb), result.settings)
    return f"| {name} | " + " | ".join(cells) + " |"


def _cosine_line(results: Results) -> str:
    cosines = [result.cosine for result in results.systems if result.cosine is not None]
    if not cosines:
        return ""
    return (
        f" All run the same model: the least cosine of their dense vectors to the first system's is {min(cosines):.5f}."
    )


def _latency_lines(results: Results) -> list[str]:
    if not results.latencies:
        return []
    lines = [
        "",
        "One text at a time, all outputs:",
        "",
        "| system | texts | p50 | p99 | calls |",
        "|---|---|---|---|---|",
    ]
    for each in results.latencies:
        cells = (each.system, each.what, f"{each.p50_s * 1000:.1f} ms", f"{each.p99_s * 1000:.1f} ms", str(each.count))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _length_lines(results: Results) -> list[str]:
    points = results.lengths
    if not points:
        return []
    heads = ["", "| system | tokens a text | tokens/s | memory |", "|---|---|---|---|"]
    rows = [(each.system, str(each.tokens), _number(each.tokens_per_s), _megabytes(each.memory_mb)) for each in points]
    return heads + ["| " + " | ".join(cells) + " |" for cells in rows]


def _cost(results: Results, system: SystemResult | None) -> str:
    if system is None or not system.tokens_per_s:
        return "an unknown amount"
    cost = cost_per_million(results.price_per_hour, system.tokens_per_s)
    return f"{cost:.4f} {results.currency} at {results.price_per_hour:g} an hour"


def cost_per_million(price_per_hour: float, tokens_per_s: float) -> float:
    """What a million tokens cost on a machine of this price."""
    return price_per_hour / 3600 / tokens_per_s * 1e6


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _megabytes(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} MB"


def called_directly(name: str) -> bool:
    """Whether a system is an engine without a server."""
    return name.endswith(DIRECT_SUFFIX)


def main() -> None:
    files = [path for path in sorted(RESULTS.glob("[cg]pu-*.json")) if not path.stem.endswith("-small")]
    if not files:
        sys.exit(f"{RESULTS} has no results; run make bench-cpu")
    section = make_section([(path.stem.partition("-")[2], read_results(path)) for path in files])
    try:
        DOCUMENT.write_text(fill_document(DOCUMENT.read_text(encoding="utf-8"), section), encoding="utf-8")
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
