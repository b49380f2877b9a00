"""The report of an evaluation: one HTML page with its charts and pictures inside it, in the order of a sceptic's questions.

Reads: the summary, the pictures' rows, the picture files below the evaluation's folder, real pictures. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.evaluation.data import Labelled
from pipeline.evaluation.plan import CONDITIONS, SWAP
from pipeline.evaluation.records import Copies, Measured, Score, Setup, StyleDistances, Summary, SwapAnswer, by_value
from pipeline.installation import version
from pipeline.pages import dots, heat, html_page, html_table, html_text, lines, picture_table
from pipeline.training import decode_picture

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.evaluation.statistics import Estimate

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


def report(summary: Summary, rows: Sequence[Score], folder: Path, labelled: Labelled) -> str:
    """The page."""
    setup = summary.setup
    title = f"{setup.model.name} on {setup.config.database}: swapping the database"
    parts = [
        f"<h1>{html_text(title)}</h1>",
        _in_short(summary),
        _set_up(summary),
        _judges(summary),
        _swap(summary, rows, folder, labelled),
        _postfix(summary, rows, folder),
        _sweeps(summary),
        _tuning(summary),
        _distances(summary),
        _captions(setup),
    ]
    return whole_page(title, parts)


def whole_page(title: str, parts: Sequence[str]) -> str:
    """An HTML page with everything inside it."""
    made = (
        f'<p class="soft">Made with rdmpipe {html_text(version())}. All numbers: summary.json; every picture: '
        "pictures.parquet.</p>"
    )
    return html_page(title, "\n".join([*parts, made]), _MORE)


def number(one: Estimate | None) -> str:
    """A mean with its interval."""
    return "" if one is None else one.text()


def measures(found: Measured | None) -> list[str]:
    """The cells of a table under NAMES."""
    named = found.named() if found else {}
    return [number(named.get(name)) for name in NAMES]


def charted(found: Measured, only: Sequence[str] = tuple(NAMES)) -> dict[str, dict[str, float]]:
    """Estimates as the charts take them, by the words of NAMES."""
    return {NAMES[name]: asdict(one) for name, one in found.named().items() if name in only}


def _in_short(summary: Summary) -> str:
    """What a reader came for: does the swap give the style, is the content still there, and is it better than a prompt?"""
    real = summary.judges.references.get("real pictures that the content judge never saw")
    swap = summary.swap
    found = [("real pictures that the judges never saw", *measures(real))]
    for kind, words in ((swap.seen_styles, "the model knows from training"),
                        (swap.styles_never_seen, "the model never saw")):  # fmt: skip
        if kind:
            found.append((f"made with the database of a style that {words}", *measures(kind)))
    for level, one in summary.postfix.items():
        apart = one.swap_minus.get("postfix")
        found.append((f"swap minus “in the style of …” in a database where the style is {level}", *measures(apart)))
    return "<h2>In short</h2>" + html_table(("", *NAMES.values()), found)


def _set_up(summary: Summary) -> str:
    setup, cost = summary.setup, summary.cost
    settings = setup.config.sampling
    never = [style for style in setup.config.never_seen if style in setup.styles]
    facts = [
        ("databases and versions", ", ".join(f"{name} {found}" for name, found in setup.databases.items())),
        ("model", f"{setup.model.name}, sha256 {setup.model.sha256[:12]}"),
        ("styles", ", ".join(setup.styles)),
        ("styles that neither encoder nor model saw", ", ".join(never) or "none"),
        ("test and validation captions", f"{len(setup.test_captions)} and {len(setup.validation_captions)}"),
        ("contents of the captions are in the database", "yes" if setup.contents_there else "not known"),
        ("the encoder's captions name the style", setup.config.encoder_captions),
        ("sampler", f"{settings.sampler}, {settings.steps} steps, seeds {list(settings.seeds)}"),
        ("pictures", f"{cost.different_pictures:,} different ones for {cost.rows:,} rows"),
        ("seconds in the last call", ", ".join(f"{name} {value:g}" for name, value in cost.seconds_now.items())),
    ]
    return (
        "<h2>Set-up</h2>"
        + html_table(("", ""), facts)
        + "<p>Written down before the first picture (protocol.json). Intervals of 95 % by bootstrap over captions.</p>"
    )


def _judges(summary: Summary) -> str:
    style, config = summary.judges.style, summary.setup.config
    rows = [(name, *measures(one)) for name, one in summary.judges.references.items()]
    note = ""
    if summary.retrieved:
        rows.append(("the first picture retrieved in each search", *measures(summary.retrieved.measured)))
        if summary.retrieved.right:
            right = number(summary.retrieved.right)
            note = f"<p>The first picture retrieved is of the content asked for: {right}.</p>"
    return (
        "<h2>The judges first</h2>"
        f"<p>Style: {html_text(config.style_judge.backbone) or 'a small network'} on pixels, tested on {style.pictures:,} "
        "real pictures of contents that it never saw: "
        f"<b>{style.accuracy:.3f}</b> ({style.low:.3f} to {style.high:.3f}).</p>"
        + heat(style.confusion, style.styles, style.styles)
        + f"<p>Content: another network, trained by itself, finds the right one of {config.prompts.candidates} captions. It "
        "has no part in retrieval or conditioning. What it and the style judge say of pictures that are not generated:</p>"
        + html_table(("pictures", *NAMES.values()), rows)
        + note
    )


def _swap(summary: Summary, rows: Sequence[Score], folder: Path, labelled: Labelled) -> str:
    swap, styles, chosen = summary.swap, summary.setup.styles, summary.tuning[SWAP]
    candidates = summary.setup.config.prompts.candidates
    chart = dots({style: charted(found) for style, found in swap.by_style.items()}, "by style swapped in")
    return (
        f"<h2>Swapping the database</h2><p>k = {chosen.k}, guidance {chosen.guidance:g}, chosen on the validation "
        f"captions. Chance: style {1 / len(styles):.2f}, content {1 / candidates:.2f}.</p>"
        + swap_table(swap) + _unstyled(swap) + _grid(rows, styles, folder, labelled) + chart
        + "<p>Judged as (rows: the style swapped in):</p>" + heat(swap.confusion, styles, styles)
    )  # fmt: skip


def swap_table(swap: SwapAnswer) -> str:
    """The swap's measures, over all styles and apart."""
    kinds = {"all": swap.all, "seen styles": swap.seen_styles, "styles never seen": swap.styles_never_seen,
             "content absent": swap.content_absent}  # fmt: skip
    named = [(name, *measures(found)) for name, found in kinds.items() if found]
    return html_table(("swap", *NAMES.values()), named)


def _unstyled(swap: SwapAnswer) -> str:
    made = ""
    for name, found in swap.without_a_style.measured.items():
        shares = ", ".join(f"{style} {share:.2f}" for style, share in swap.without_a_style.guesses[name].items())
        made += f"<p>{html_text(name)}: content found {number(found.found)}; judged as {html_text(shares)}</p>"
    return made


def _grid(rows: Sequence[Score], styles: Sequence[str], folder: Path, labelled: Labelled) -> str:
    """The first captions in every style: not chosen by their result."""
    own = {(row.caption, row.style): row for row in rows if row.phase == "swap" and row.condition == SWAP}
    captions = list(dict.fromkeys(caption for caption, _ in own))[:GRID_ROWS]
    made = [(caption, [_read(own.get((caption, style)), folder) for style in styles]) for caption in captions]
    pictures = labelled.pictures
    real = [next((pictures.pixels[i] for i, s in enumerate(pictures.styles) if s == style), None) for style in styles]
    return (
        f"<p>The first {len(captions)} test captions, in their order; in the first row a real picture of each style.</p>"
        + picture_table(styles, [("(real)", real), *made])
    )  # fmt: skip


def _read(row: Score | None, folder: Path) -> Tensor | None:
    return None if row is None else decode_picture((folder / row.file).read_bytes(), 64)


def _postfix(summary: Summary, rows: Sequence[Score], folder: Path) -> str:
    parts = ["<h2>Swap against postfix</h2><p>(a) postfix: the database the model was trained with, and the prompt with "
             "“in the style of …”; (b) its neighbours only; (c) its text only; (d) no style named. The database "
             "holds the style as it is (common), thinned (rare), or not at all (unseen).</p>"]  # fmt: skip
    for measure, name in NAMES.items():
        groups = {
            level: {condition: asdict(found.named()[measure]) for condition, found in made.conditions.items()}
            for level, made in summary.postfix.items()
        }
        parts.append(dots(groups, name))
    table = [
        (level, condition, *measures(found))
        for level, made in summary.postfix.items()
        for condition, found in made.swap_minus.items()
    ]
    parts.append("<p>Swap minus the other, each caption compared with itself; above zero is for the swap:</p>")
    parts.append(html_table(("database holds", "swap minus", *NAMES.values()), table))
    first = [row for row in rows if row.phase == "postfix"]
    captions = by_value(first, "caption")[:4]
    own = {(row.caption, row.style, row.level, row.condition): row for row in reversed(first)}
    for level in summary.postfix:
        grid = [
            (f"{caption} · {style}", [_read(own.get((caption, style, level, c)), folder) for c in CONDITIONS])
            for style in by_value(first, "style") for caption in captions
        ]  # fmt: skip
        parts.append(f"<h3>{html_text(level)}</h3>" + picture_table(CONDITIONS, grid, side=64))
    return "".join(parts)


def _sweeps(summary: Summary) -> str:
    sweeps = summary.sweeps
    every = {"neighbours (k)": sweeps.neighbours, "guidance scale": sweeps.guidance,
             "share of the style's database": sweeps.size}  # fmt: skip
    charts, tables = [], ""
    for label, found in every.items():
        drawn = {at: charted(one, ("style_hit", "found")) for at, one in found.items()}
        names = dict.fromkeys(name for one in drawn.values() for name in one)
        series = {name: {at: one[name] for at, one in drawn.items() if name in one} for name in names}
        charts.append(lines(series, label))
        tables += html_table((label, *NAMES.values()), [(at, *measures(one)) for at, one in found.items()])
    text = (
        "<h2>How many neighbours, how much guidance, how large a database</h2>"
        f'<div class="side">{"".join(charts)}</div>{tables}'
    )
    if sweeps.separate:
        pair = [(name, *measures(sweeps.separate.measured[name])) for name in ("filter", "separate")]
        text += "<p>A filter over the mixed database against a database of the style alone:</p>"
        text += html_table(("", *NAMES.values()), pair)
        text += f"<p>Same neighbours in {sweeps.separate.same_neighbours:.2f} of {sweeps.separate.pairs} searches.</p>"
    return text


def _tuning(summary: Summary) -> str:
    rows = [
        (condition, point.k, point.guidance, point.style, point.found, point.score,
         "chosen" if (point.k, point.guidance) == (grid.k, grid.guidance) else "")
        for condition, grid in summary.tuning.items()
        for point in grid.grid
    ]  # fmt: skip
    heads = ("condition", "k", "guidance", "style", "content found", "score", "")
    return "<h2>k and guidance on the validation captions</h2><details><summary>the grids</summary>" + (
        html_table(heads, rows) + "</details>"
    )


def _distances(summary: Summary) -> str:
    seeds = summary.diversity_over_seeds
    return (
        "<h2>Distances, diversity, copies</h2><p>Kernel distance on the features of this evaluation’s own judges; it compares "
        "with nothing outside this page.</p>" + _kernel_table(summary.distances)
        + "<p>Diversity: mean 1 − cosine of the content judge’s features"
        + (f"; of one prompt over the seeds {seeds:.3f}" if seeds is not None else "") + ".</p>"
        + html_table(("style", "generated", "real"), [
            (style, one.diversity, one.diversity_of_real_pictures) for style, one in summary.distances.items()
        ])
        + "<p>The nearest real picture of each generated one, by root mean square of 16 x 16 pixels:</p>"
        + _copies_table(summary.copies)
    )  # fmt: skip


def _kernel_table(distances: Mapping[str, StyleDistances]) -> str:
    rows = [
        (style, judge, _small(one.kid), _small(one.same_contents), _small(one.nearest_other_style))
        for style, found in distances.items()
        for judge, one in found.judges().items()
    ]
    heads = ("style", "features of the", "KID to its real pictures", "of real pictures", "of the nearest other style")
    return html_table(heads, rows)


def _copies_table(copies: Copies) -> str:
    rows = [(name.replace("_", " "), _small(value)) for name, value in asdict(copies).items() if value is not None]
    return html_table(("", ""), rows)


def _small(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _captions(setup: Setup) -> str:
    def listed(name: str, captions: Sequence[str]) -> str:
        return f"<p><b>{name}</b>: {html_text(' · '.join(captions))}</p>"

    return (
        "<h2>Captions</h2><details><summary>all of them</summary>"
        + listed("test captions", setup.test_captions)
        + listed("validation captions", setup.validation_captions)
        + "</details>"
    )
