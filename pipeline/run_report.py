"""One small self-contained HTML page about one run: how it ended, what it counted, where the time went, what failed.

Reads: a run's summary, the stages' progress, the list of failed shards, all as plain values. Writes nothing.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --ink: #1e1b17; --soft: #6d655a; --line: #ddd5c8; --paper: #fbf9f5; --bar: #4d6b57;
  --bad: #a5382b }
@media (prefers-color-scheme: dark) { :root { --ink: #ece6dc; --soft: #a49b8d; --line: #3d3830; --paper: #1a1815;
  --bar: #86ab92; --bad: #e0796b } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 56rem;
  margin: 2.5rem auto; padding: 0 1.25rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem } p { margin: .3rem 0 }
.soft { color: var(--soft) } .bad { color: var(--bad) } .good { color: var(--bar) }
.status { font-weight: 600 }
table { border-collapse: collapse; min-width: 20rem }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line) } th { font-weight: 500; color: var(--soft) } .n { text-align: right;
  font-variant-numeric: tabular-nums }
.track { background: var(--line); height: .5rem; min-width: 8rem; border-radius: .25rem; margin-top: .5rem; overflow: hidden }
.track div { background: var(--bar); height: 100% } pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85em;
  border-left: 3px solid var(--bad); padding-left: .8rem; margin: .4rem 0 } code { overflow-wrap: anywhere }
.scroll { overflow-x: auto }
"""
_COUNTS = ("input", "ok", "filtered", "failed", "duplicates", "rows", "images", "pictures", "generated")


def run_report(
    summary: Mapping[str, Any], progress: Mapping[str, Any] | None = None, failures: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The page. `summary` as `rdmpipe run --json` prints it, `progress` as in progress.json, failures as in failures.json."""
    result = summary.get("result") or {}
    parts = [
        _head(summary),
        _failures(failures),
        _counts(result),
        _stages(progress or {}, result),
        _pairs("Reasons for rows left out", result.get("reasons") or {}, "reason", "rows"),
        _pairs("Changes found by the refresh", result.get("changes") or {}, "change", "rows"),
        _recall(result),
        _attempts(summary),
        _notes(result),
    ]
    title = _text(f"{summary.get('job', 'run')} {summary.get('slot', '')}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + "\n</body></html>\n"
    )


def _text(value: Any) -> str:
    return html.escape(_number(value) if isinstance(value, int | float) else str(value))


def _number(value: float) -> str:
    if isinstance(value, bool):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]], raw: bool = False) -> str:
    """A table; cells that are numbers to the right. raw: text cells are markup already."""

    def cell(value: Any, tag: str = "td") -> str:
        if isinstance(value, int | float):
            return f'<{tag} class="n">{_text(value)}</{tag}>'
        return f"<{tag}>{value if raw else _text(value)}</{tag}>"

    numeric = [bool(rows) and isinstance(rows[0][i], int | float) for i in range(len(headers))]
    names = "".join(
        f'<th class="n">{_text(h)}</th>' if n else f"<th>{_text(h)}</th>" for h, n in zip(headers, numeric, strict=True)
    )
    body = "".join("<tr>" + "".join(cell(value) for value in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def _head(summary: Mapping[str, Any]) -> str:
    good = summary.get("exit_code") == 0
    mark = f'<span class="status {"good" if good else "bad"}">{_text(summary.get("status", ""))}</span>'
    command = " ".join(map(str, summary.get("command", ())))
    spent = sum(float(attempt["seconds"]) for attempt in summary.get("attempts", ()))
    return (
        f"<h1>{_text(summary.get('job', 'run'))}</h1>"
        f'<p>{mark} <span class="soft">with exit code {_text(summary.get("exit_code", ""))}, after {_span(spent)}</span></p>'
        f"<p><code>rdmpipe {_text(command)}</code></p>"
        f'<p class="soft">slot {_text(summary.get("slot", ""))}, on {_text(summary.get("host", ""))}, '
        f"{_when(summary.get('started', ''))} to {_when(summary.get('ended', ''))}</p>"
    )


def _when(stamp: str) -> str:
    return _text(stamp.replace("T", " ").replace("+00:00", " UTC"))


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def _counts(result: Mapping[str, Any]) -> str:
    rows = [(name, result[name]) for name in _COUNTS if isinstance(result.get(name), int)]
    named = " ".join(_text(result[name]) for name in ("name", "version") if isinstance(result.get(name), str))
    return f'<h2>Rows <span class="soft">{named}</span></h2>' + _table(("", "rows"), rows) if rows else ""


def _stages(progress: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    stages, shards = progress.get("stages") or {}, result.get("shards")
    shards = shards if isinstance(shards, Mapping) else {}
    rows = []
    for name, state in stages.items():
        share = 100.0 * state["done"] / state["shards"] if state["shards"] else 0.0
        ran = shards.get(name, {}).get("ran", "")
        bar = f'<div class="track"><div style="width:{share:.1f}%"></div></div>'
        failed = int(state["failed"])
        rate = float(state["rows_per_second"])
        rows.append((_text(name), bar, int(state["done"]), int(state["shards"]), ran, failed, int(state["rows"]), rate))
    heads = ("stage", "", "shards done", "of", "of them now", "failed", "rows now", "rows a second")
    return "<h2>Stages</h2>" + _table(heads, rows, raw=True) if rows else ""


def _pairs(title: str, values: Mapping[str, Any], what: str, count: str) -> str:
    rows = sorted(values.items(), key=lambda pair: -int(pair[1]))
    return f"<h2>{_text(title)}</h2>" + _table((what, count), rows) if rows else ""


def _recall(result: Mapping[str, Any]) -> str:
    index = result.get("index") or {}
    measured = {
        kind: found
        for kind, found in (index.get("recall") or {}).items()
        if isinstance(found, Mapping) and "value" in found
    }
    names = list(dict.fromkeys(name for found in measured.values() for name in found if name != "value"))
    rows = [
        (
            kind,
            f"{found['value']:.4f}",
            *(f"{found[n]:.4f}" if isinstance(found.get(n), float) else found.get(n, "") for n in names),
        )
        for kind, found in measured.items()
    ]
    return f"<h2>Index {_text(index.get('key', ''))}</h2>" + _table(("queries", "recall", *names), rows) if rows else ""


def _failures(failures: Sequence[Mapping[str, Any]]) -> str:
    if not failures:
        return ""
    shown = "".join(
        f"<p>{_text(f['stage'])}, shard {int(f['shard']):06d}, after {int(f['attempts'])} attempts</p>"
        f"<pre>{_text(f['error'])}</pre>"
        for f in failures[:50]
    )
    more = f"<p>and {len(failures) - 50} more in failures.json</p>" if len(failures) > 50 else ""
    return f'<h2 class="bad">Failed shards: {len(failures):,}</h2>{shown}{more}'


def _attempts(summary: Mapping[str, Any]) -> str:
    attempts = summary.get("attempts", ())
    if not attempts or (len(attempts) == 1 and not attempts[0]["error"]):
        return ""
    shown = "".join(
        f"<p>{_when(a['started'])}: {_span(float(a['seconds']))}, exit code {_text(a['exit_code'])}</p>"
        + (f"<pre>{_text(a['error'])}</pre>" if a["error"] else "")
        for a in attempts
    )
    return f"<h2>Attempts</h2>{shown}"


def _notes(result: Mapping[str, Any]) -> str:
    warnings = result.get("warnings") or ()
    return "<h2>Notes</h2>" + "".join(f"<p>{_text(warning)}</p>" for warning in warnings) if warnings else ""
