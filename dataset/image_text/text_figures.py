"""The page of the queries' statistics."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from dataset.image_text.text_statistics import ORDERS, TOP, Statistics, quantiles, shares
from visual_search.page import Section, write_page

BLUE, RED = "#3b74b9", "crimson"
SHOWN_LANGUAGES = 12


def write_statistics(path: Path, name: str, found: Statistics, summary: dict[str, Any]) -> None:
    """Write the page.

    Args:
        path: of the html file.
        name: of the table that was counted.
        found: what was counted.
        summary: of it.
    """
    plain = {key: f"{value:,}" for key, value in summary.items() if isinstance(value, int)}
    sections = [
        Section("In all", facts=plain),
        Section(
            "Lengths",
            ["Of the queries as typed. Box: the middle half; whiskers: 5 % and 95 %."],
            pictures={"": lengths_figure(found.lengths)},
        ),
        *(_ngram_section(order, found) for order in ORDERS),
        Section(
            "Languages",
            pictures={"": _bars(found.languages.most_common(SHOWN_LANGUAGES), "queries")},
        ),
        Section(
            "Duplicates",
            ["A text that stands at many photos tells them less apart, and makes wrong negatives."],
            tables={
                "": [
                    ("photos with the text", "different texts", "queries"),
                    *(
                        (label, f"{texts:,}", f"{queries:,}")
                        for label, texts, queries in shares(found.photos_of_text)
                    ),
                ]
            },
        ),
        Section(
            "Growth of the vocabulary",
            [
                "Different words against words seen; the line is Heaps' law. The flatter, the "
                "fewer words are new."
            ],
            pictures={"": growth_figure(found.growth, summary["vocabulary growth"])},
        ),
    ]
    write_page(path, f"Queries of {name}", sections)


def lengths_figure(lengths: dict[str, Counter[int]]) -> Figure:
    """Histograms with the box plot above each."""
    titles = {
        "characters": "characters of a query",
        "words": "words of a query",
        "queries": "queries of a photo",
    }
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(2, 3, height_ratios=(1, 5), sharex="col")
    for column, (key, title) in enumerate(titles.items()):
        box, bars = axes[0][column], axes[1][column]
        quantile = quantiles(lengths[key])
        if "median" in quantile:
            ends = {"whislo": "p5", "q1": "p25", "med": "median", "q3": "p75", "whishi": "p95"}
            box.bxp(
                [{end: quantile[name] for end, name in ends.items()}],
                orientation="horizontal",
                showfliers=False,
                widths=0.6,
            )
        box.set_axis_off()
        bars.bar(list(lengths[key]), list(lengths[key].values()), width=1.0, color=BLUE)
        bars.set(xlabel=title)
        bars.xaxis.set_major_locator(MaxNLocator(integer=True))
        bars.grid(alpha=0.3, axis="y")
    return figure


def _ngram_section(order: int, found: Statistics) -> Section:
    top = found.ngrams[order]
    title = "Most frequent words" if order == 1 else f"Most frequent runs of {order} words"
    note = "Cleaned words."
    if top.error:
        note += f" Counts are too low by at most {top.error:,}."
    return Section(title, [note], pictures={"": _bars(top.most_common(TOP), "times")})


def _bars(rows: list[tuple[str, int]], unit: str) -> Figure:
    """Horizontal bars, the longest on top."""
    figure = Figure(figsize=(9, 0.6 + 0.24 * max(len(rows), 1)), layout="constrained")
    axes = figure.subplots()
    names = [name if len(name) <= 60 else f"{name[:59]}…" for name, _ in rows]
    # By place, not by name: two long names may be cut to the same.
    axes.barh(range(len(rows)), [times for _, times in rows], color=BLUE)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set(xlabel=unit)
    axes.grid(alpha=0.3, axis="x")
    return figure


def growth_figure(growth: list[tuple[int, int]], law: dict[str, float]) -> Figure:
    """Different words against words seen, both as logarithms."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    seen = [words for words, _ in growth]
    axes.loglog(seen, [different for _, different in growth], "o-", color=BLUE, markersize=3)
    if law["exponent"] == law["exponent"]:  # a number, not nan
        factor, exponent = law["factor"], law["exponent"]
        label = f"V = {factor:.2g} n^{exponent:.2f}"
        fitted = [factor * words**exponent for words in seen]
        axes.loglog(seen, fitted, "--", color=RED, linewidth=1, label=label)
        axes.legend()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="words seen", ylabel="different words")
    axes.grid(alpha=0.3, which="both")
    return figure
