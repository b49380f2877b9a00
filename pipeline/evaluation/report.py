"""The report of an evaluation: one HTML page with its charts and pictures inside it, in the order a doubter would ask.

Reads: the summary, the pictures' rows, the picture files below the evaluation's folder, real pictures. Writes nothing.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.data import Labelled
from pipeline.evaluation.plan import CONDITIONS, SWAP
from pipeline.installation import version
from pipeline.pages import STYLE, dots, heat, html_table, lines, picture_table
from pipeline.training import decode_picture

_MORE = """
body { max-width: 64rem } svg { max-width: 100%; height: auto }
svg text { font: 12px system-ui, sans-serif; fill: currentColor }
svg .a { stroke: var(--line) } svg .g { font-weight: 600 } svg .s { fill: var(--soft) } .grid td { padding: 1px; border: 0 }
.grid th { border: 0; font-size: .8rem; padding: .2rem; max-width: 4.4rem; vertical-align: bottom; overflow-wrap: anywhere }
.grid th.c { max-width: 13rem; text-align: right; padding-right: .6rem; vertical-align: top }
.grid img { display: block; image-rendering: auto } .side { display: flex; flex-wrap: wrap; gap: .5rem }
"""

NAMES = {"style_hit": "style", "found": "content found", "nearly": "among the first ten"}

GRID_ROWS = 10


def report(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], folder: Path, labelled: Labelled) -> str:
    """The page."""
    setup = summary["setup"]
    config = setup["config"]
    title = f"{setup['model']['name']} on {config['database']}: swapping the database"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _in_short(summary),
        _set_up(summary),
        _judges(summary),
        _swap(summary, rows, folder, labelled),
        _postfix(summary, rows, folder),
        _sweeps(summary),
        _tuning(summary),
        _distances(summary),
        _captions(setup),
        f'<p class="soft">Made with rdmpipe {html.escape(version())}. All numbers: summary.json; every picture: '
        "pictures.parquet.</p>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{_MORE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def number(one: Mapping[str, Any] | None) -> str:
    """A mean with its interval."""
    return "" if one is None else f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})"


def measures(found: Mapping[str, Any] | None) -> list[str]:
    found = found or {}
    return [number(found.get(name)) for name in NAMES]


def _in_short(summary: Mapping[str, Any]) -> str:
    """What a reader came for: does the swap give the style, is the content still there, and is it better than a prompt?"""
    real = summary["judges"]["references"].get("real pictures that the content judge never saw")
    swap = summary["swap"]
    found = [("real pictures that the judges never saw", *measures(real))]
    for name, words in (("seen styles", "the model knows from training"), ("styles never seen", "the model never saw")):
        if swap[name]:
            found.append((f"made with the database of a style that {words}", *measures(swap[name])))
    for level, one in (summary["postfix"] or {}).items():
        apart = one["swap minus"].get("postfix")
        found.append((f"swap minus “in the style of …” in a database where the style is {level}", *measures(apart)))
    return "<h2>In short</h2>" + html_table(("", *NAMES.values()), found)


def _set_up(summary: Mapping[str, Any]) -> str:
    setup, cost = summary["setup"], summary["cost"]
    config = setup["config"]
    never = [style for style in config["never_seen"] if style in setup["styles"]]
    facts = [
        ("databases and versions", ", ".join(f"{name} {found}" for name, found in setup["databases"].items())),
        ("model", f"{setup['model']['name']}, sha256 {setup['model']['sha256'][:12]}"),
        ("styles", ", ".join(setup["styles"])),
        ("styles that neither encoder nor model saw", ", ".join(never) or "none"),
        ("test and validation captions", f"{len(setup['test captions'])} and {len(setup['validation captions'])}"),
        (
            "contents of the captions are in the database",
            "yes" if setup["captions' contents are in the database"] else "not known",
        ),
        ("the encoder's captions name the style", config["encoder_captions"]),
        (
            "sampler",
            f"{config['sampling']['sampler']}, {config['sampling']['steps']} steps, seeds {config['sampling']['seeds']}",
        ),
        ("pictures", f"{cost['different pictures']:,} different ones for {cost['rows']:,} rows"),
        ("seconds in the last call", ", ".join(f"{name} {value:g}" for name, value in cost["seconds now"].items())),
    ]
    return (
        "<h2>Set-up</h2>"
        + html_table(("", ""), facts)
        + (
            "<p>Written down before the first picture (protocol.json). Intervals of 95 % by bootstrap over captions.</p>"
        )
    )


def _judges(summary: Mapping[str, Any]) -> str:
    style, found = summary["judges"]["style"], summary["judges"]["references"]
    backbone = html.escape(summary["setup"]["config"]["style_judge"]["backbone"])
    rows = [(name, *measures(one)) for name, one in found.items()]
    if summary["retrieved"]:
        rows.append(("the first picture retrieved in each search", *measures(summary["retrieved"])))
        right = summary["retrieved"]["is the content asked for"]
        note = f"<p>The first picture retrieved is of the content asked for: {number(right)}.</p>" if right else ""
    else:
        note = ""
    count = summary["setup"]["config"]["prompts"]["candidates"]
    return (
        "<h2>The judges first</h2>"
        f"<p>Style: {backbone or 'a small network'} on pixels, tested on {style['pictures']:,} real pictures of contents that "
        "it never saw: "
        f"<b>{style['accuracy']:.3f}</b> ({style['low']:.3f} to {style['high']:.3f}).</p>"
        + heat(style["confusion"], style["styles"], style["styles"])
        + f"<p>Content: another network, trained by itself, finds the right one of {count} captions. It has no part in "
        "retrieval or conditioning. What it and the style judge say of pictures that are not generated:</p>"
        + html_table(("pictures", *NAMES.values()), rows)
        + note
    )


def _swap(
    summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], folder: Path, labelled: Labelled
) -> str:  # fmt: skip
    swap, styles = summary["swap"], summary["setup"]["styles"]
    kinds = ("all", "seen styles", "styles never seen", "content absent")
    named = [(name, *measures(swap[name])) for name in kinds if swap[name]]
    chosen = summary["tuning"][SWAP]
    count = summary["setup"]["config"]["prompts"]["candidates"]
    table = html_table(("swap", *NAMES.values()), named)
    other = ""
    for name, found in swap["without a style"]["measured"].items():
        shares = ", ".join(f"{style} {share:.2f}" for style, share in swap["without a style"]["guesses"][name].items())
        other += f"<p>{html.escape(name)}: content found {number(found['found'])}; judged as {html.escape(shares)}</p>"
    chart = dots({style: {NAMES[k]: v for k, v in found.items()} for style, found in swap["by style"].items()},
                 "by style swapped in")  # fmt: skip
    return (
        f"<h2>Swapping the database</h2><p>k = {chosen['k']}, guidance {chosen['guidance']:g}, chosen on the validation "
        f"captions. Chance: style {1 / len(styles):.2f}, content {1 / count:.2f}.</p>"
        + table + other + _grid(rows, styles, folder, labelled) + chart
        + "<p>Judged as (rows: the style swapped in):</p>" + heat(swap["confusion"], styles, styles)
    )  # fmt: skip


def _grid(rows: Sequence[Mapping[str, Any]], styles: Sequence[str], folder: Path, labelled: Labelled) -> str:
    """The first captions in every style: not chosen by their result."""
    own = {(row["caption"], row["style"]): row for row in rows if row["phase"] == "swap" and row["condition"] == SWAP}
    captions = list(dict.fromkeys(caption for caption, _ in own))[:GRID_ROWS]
    lines_ = [(caption, [_read(own.get((caption, style)), folder) for style in styles]) for caption in captions]
    pictures = labelled.pictures
    real = [next((pictures.pixels[i] for i, s in enumerate(pictures.styles) if s == style), None) for style in styles]
    return (
        f"<p>The first {len(captions)} test captions, as they come; in the first row a real picture of each style.</p>"
        + picture_table(styles, [("(real)", real), *lines_])
    )  # fmt: skip


def _read(row: Mapping[str, Any] | None, folder: Path) -> Any:
    return None if row is None else decode_picture((folder / row["file"]).read_bytes(), 64)


def _postfix(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], folder: Path) -> str:
    parts = ["<h2>Swap against postfix</h2><p>(a) postfix: the database the model was trained with, and the prompt with "
             "“in the style of …”; (b) its neighbours only; (c) its text only; (d) no style named. The database "
             "holds the style as it is (common), thinned (rare), or not at all (unseen).</p>"]  # fmt: skip
    for measure, name in NAMES.items():
        groups = {level: {c: found[measure] for c, found in made["conditions"].items()}
                  for level, made in summary["postfix"].items()}  # fmt: skip
        parts.append(dots(groups, name))
    table = [
        (level, condition, *(number(found[name]) for name in NAMES))
        for level, made in summary["postfix"].items()
        for condition, found in made["swap minus"].items()
    ]
    parts.append("<p>Swap minus the other, each caption compared with itself; above zero is for the swap:</p>")
    parts.append(html_table(("database holds", "swap minus", *NAMES.values()), table))
    first = [row for row in rows if row["phase"] == "postfix"]
    captions = list(dict.fromkeys(row["caption"] for row in first))[:4]
    own = {(row["caption"], row["style"], row["level"], row["condition"]): row for row in reversed(first)}
    styles = list(dict.fromkeys(row["style"] for row in first))
    for level in summary["postfix"]:
        grid = [
            (f"{caption} · {style}", [_read(own.get((caption, style, level, c)), folder) for c in CONDITIONS])
            for style in styles for caption in captions
        ]  # fmt: skip
        parts.append(f"<h3>{html.escape(level)}</h3>" + picture_table(CONDITIONS, grid, side=64))
    return "".join(parts)


def _sweeps(summary: Mapping[str, Any]) -> str:
    labels = {"neighbours": "neighbours (k)", "guidance": "guidance scale", "size": "share of the style's database"}
    charts = []
    for name, label in labels.items():
        found = summary["sweeps"][name]
        series = {NAMES[m]: {at: one[m] for at, one in found.items() if m in one} for m in ("style_hit", "found")}
        charts.append(lines(series, label))
    text = (
        "<h2>How many neighbours, how much guidance, how large a database</h2>"
        + f'<div class="side">{"".join(charts)}</div>'
    )
    for name, label in labels.items():
        text += html_table(
            (label, *NAMES.values()), [(at, *measures(one)) for at, one in summary["sweeps"][name].items()]
        )
    separate = summary["sweeps"].get("separate")
    if separate:
        pair = [(name, *measures(separate[name])) for name in ("filter", "separate")]
        text += "<p>A filter over the mixed database against a database of the style alone:</p>"
        text += html_table(("", *NAMES.values()), pair)
        text += f"<p>Same neighbours in {separate['same neighbours']:.2f} of {separate['pairs']} searches.</p>"
    return text


def _tuning(summary: Mapping[str, Any]) -> str:
    rows = [
        (condition, point["k"], point["guidance"], point["style"], point["found"], point["score"],
         "chosen" if (point["k"], point["guidance"]) == (grid["k"], grid["guidance"]) else "")
        for condition, grid in summary["tuning"].items()
        for point in grid["grid"]
    ]  # fmt: skip
    heads = ("condition", "k", "guidance", "style", "content found", "score", "")
    return "<h2>k and guidance on the validation captions</h2><details><summary>the grids</summary>" + (
        html_table(heads, rows) + "</details>"
    )


def _distances(summary: Mapping[str, Any]) -> str:
    rows = [
        (
            style,
            name,
            _small(one["kid"]),
            _small(one["real pictures of the same contents"]),
            _small(one["nearest other style"]),
        )
        for style, found in summary["distances"].items()
        for name, one in found.items()
        if isinstance(one, dict)
    ]
    heads = ("style", "features of the", "KID to its real pictures", "of real pictures", "of the nearest other style")
    spread = [
        (style, one["diversity"], one["diversity of real pictures"]) for style, one in summary["distances"].items()
    ]
    copied = [(name, _small(value)) for name, value in summary["copies"].items()]
    seeds = summary["diversity over seeds"]
    return (
        "<h2>Distances, diversity, copies</h2><p>Kernel distance on the features of this evaluation’s own judges; it compares "
        "with nothing outside this page.</p>" + html_table(heads, rows)
        + "<p>Diversity: mean 1 − cosine of the content judge’s features"
        + (f"; of one prompt over the seeds {seeds:.3f}" if seeds is not None else "") + ".</p>"
        + html_table(("style", "generated", "real"), spread)
        + "<p>The nearest real picture of each generated one, by root mean square of 16 x 16 pixels:</p>"
        + html_table(("", ""), copied)
    )  # fmt: skip


def _small(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _captions(setup: Mapping[str, Any]) -> str:
    def listed(name: str) -> str:
        return f"<p><b>{html.escape(name)}</b>: {html.escape(' · '.join(setup[name]))}</p>"

    return "<h2>Captions</h2><details><summary>all of them</summary>" + (
        listed("test captions") + listed("validation captions") + "</details>"
    )
