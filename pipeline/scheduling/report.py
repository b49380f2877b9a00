"""One small self-contained HTML page about one run: how it ended, what it counted, where the time went, what failed.

Reads: a run's summary, the stages' progress, the list of failed shards, all as plain values. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.pages import STYLE, html_table, html_text

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
    title = html_text(f"{summary.get('job', 'run')} {summary.get('slot', '')}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + "\n</body></html>\n"
    )


def _head(summary: Mapping[str, Any]) -> str:
    good = summary.get("exit_code") == 0
    mark = f'<span class="status {"good" if good else "bad"}">{html_text(summary.get("status", ""))}</span>'
    command = " ".join(map(str, summary.get("command", ())))
    spent = sum(float(attempt["seconds"]) for attempt in summary.get("attempts", ()))
    return (
        f"<h1>{html_text(summary.get('job', 'run'))}</h1>"
        f'<p>{mark} <span class="soft">with exit code {html_text(summary.get("exit_code", ""))}, '
        f"after {_span(spent)}</span></p>"
        f"<p><code>rdmpipe {html_text(command)}</code></p>"
        f'<p class="soft">slot {html_text(summary.get("slot", ""))}, on {html_text(summary.get("host", ""))}, '
        f"{_when(summary.get('started', ''))} to {_when(summary.get('ended', ''))}</p>"
    )


def _when(stamp: str) -> str:
    return html_text(stamp.replace("T", " ").replace("+00:00", " UTC"))


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def _counts(result: Mapping[str, Any]) -> str:
    rows = [(name, result[name]) for name in _COUNTS if isinstance(result.get(name), int)]
    named = " ".join(html_text(result[name]) for name in ("name", "version") if isinstance(result.get(name), str))
    return f'<h2>Rows <span class="soft">{named}</span></h2>' + html_table(("", "rows"), rows) if rows else ""


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
        rows.append(
            (html_text(name), bar, int(state["done"]), int(state["shards"]), ran, failed, int(state["rows"]), rate)
        )
    heads = ("stage", "", "shards done", "of", "of them now", "failed", "rows now", "rows a second")
    return "<h2>Stages</h2>" + html_table(heads, rows, raw=True) if rows else ""


def _pairs(title: str, values: Mapping[str, Any], what: str, count: str) -> str:
    rows = sorted(values.items(), key=lambda pair: -int(pair[1]))
    return f"<h2>{html_text(title)}</h2>" + html_table((what, count), rows) if rows else ""


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
    return (
        f"<h2>Index {html_text(index.get('key', ''))}</h2>" + html_table(("queries", "recall", *names), rows)
        if rows
        else ""
    )


def _failures(failures: Sequence[Mapping[str, Any]]) -> str:
    if not failures:
        return ""
    shown = "".join(
        f"<p>{html_text(f['stage'])}, shard {int(f['shard']):06d}, after {int(f['attempts'])} attempts</p>"
        f"<pre>{html_text(f['error'])}</pre>"
        for f in failures[:50]
    )
    more = f"<p>and {len(failures) - 50} more in failures.json</p>" if len(failures) > 50 else ""
    return f'<h2 class="bad">Failed shards: {len(failures):,}</h2>{shown}{more}'


def _attempts(summary: Mapping[str, Any]) -> str:
    attempts = summary.get("attempts", ())
    if not attempts or (len(attempts) == 1 and not attempts[0]["error"]):
        return ""
    shown = "".join(
        f"<p>{_when(a['started'])}: {_span(float(a['seconds']))}, exit code {html_text(a['exit_code'])}</p>"
        + (f"<pre>{html_text(a['error'])}</pre>" if a["error"] else "")
        for a in attempts
    )
    return f"<h2>Attempts</h2>{shown}"


def _notes(result: Mapping[str, Any]) -> str:
    warnings = result.get("warnings") or ()
    return "<h2>Notes</h2>" + "".join(f"<p>{html_text(warning)}</p>" for warning in warnings) if warnings else ""
