"""An HTML page that reports one run: status, row counts, stages, recall, failed shards and rows, hosts and attempts.

The page needs no other file. Reads: the run's summary as JSON values, and what the command left in the home. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.pages import html_page, html_table, html_text
from pipeline.scheduling.traces import Traces
from pipeline.scheduling.values import mapping, mappings, number, sequence, text

_MOST_HOSTS = 50  # on a page

_COUNTS = ("input", "ok", "filtered", "failed", "duplicates", "rows", "images", "pictures", "generated")


def run_report(summary: Mapping[str, object], left: Traces | None = None) -> str:
    """The HTML text of the page. A section without values is left out. summary: the object that `rdmpipe run --json` prints."""
    result, left = mapping(summary.get("result")), left or Traces({})
    parts = [
        _head(summary),
        _failures(left),
        _counts(result),
        _stages(left.progress, result),
        _pairs("Reasons for rows left out", mapping(result.get("reasons")), "reason", "rows"),
        _failed_rows(left),
        _pairs("Files of the source that are no rows", mapping(result.get("left_out")), "kind", "files"),
        _hosts(mapping(result.get("hosts"))),
        _pairs("Changes found by the refresh", mapping(result.get("changes")), "change", "rows"),
        _recall(result),
        _attempts(summary),
        _notes(result),
    ]
    return html_page(f"{summary.get('job', 'run')} {summary.get('slot', '')}", "\n".join(filter(None, parts)))


def _head(summary: Mapping[str, object]) -> str:
    good = summary.get("exit_code") == 0
    mark = f'<span class="status {"good" if good else "bad"}">{html_text(summary.get("status", ""))}</span>'
    command = " ".join(map(str, sequence(summary.get("command"))))
    spent = sum(number(attempt.get("seconds")) for attempt in mappings(summary.get("attempts")))
    return (
        f"<h1>{html_text(summary.get('job', 'run'))}</h1>"
        f'<p>{mark} <span class="soft">with exit code {html_text(summary.get("exit_code", ""))}, '
        f"after {_span(spent)}</span></p>"
        f"<p><code>rdmpipe {html_text(command)}</code></p>"
        f'<p class="soft">slot {html_text(summary.get("slot", ""))}, on {html_text(summary.get("host", ""))}, '
        f"{_when(text(summary.get('started')))} to {_when(text(summary.get('ended')))}</p>"
    )


def _when(stamp: str) -> str:
    return html_text(stamp.replace("T", " ").replace("+00:00", " UTC"))


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def _counts(result: Mapping[str, object]) -> str:
    rows = [(name, result[name]) for name in _COUNTS if isinstance(result.get(name), int)]
    named = " ".join(html_text(result[name]) for name in ("name", "version") if isinstance(result.get(name), str))
    return f'<h2>Rows <span class="soft">{named}</span></h2>' + html_table(("", "rows"), rows) if rows else ""


def _stages(progress: Mapping[str, object], result: Mapping[str, object]) -> str:
    shards = mapping(result.get("shards"))
    rows = []
    for name, value in mapping(progress.get("stages")).items():
        state = mapping(value)
        done, total, failed, count = (int(number(state.get(key))) for key in ("done", "shards", "failed", "rows"))
        share = 100.0 * done / total if total else 0.0
        bar = f'<div class="track"><div style="width:{share:.1f}%"></div></div>'
        ran = mapping(shards.get(name)).get("ran", "")
        rate = float(number(state.get("rows_per_second")))
        rows.append((html_text(name), bar, done, total, ran, failed, count, rate))
    heads = ("stage", "", "shards done", "of", "of them now", "failed", "rows now", "rows a second")
    return "<h2>Stages</h2>" + html_table(heads, rows, raw=True) if rows else ""


def _pairs(title: str, values: Mapping[str, object], what: str, count: str) -> str:
    rows = sorted(values.items(), key=lambda pair: -number(pair[1]))
    return f"<h2>{html_text(title)}</h2>" + html_table((what, count), rows) if rows else ""


def _recall(result: Mapping[str, object]) -> str:
    index = mapping(result.get("index"))
    measured = {
        kind: found
        for kind, found in mapping(index.get("recall")).items()
        if isinstance(found, Mapping) and "value" in found
    }
    names = list(dict.fromkeys(name for found in measured.values() for name in found if name != "value"))
    rows = [
        (
            kind,
            f"{number(found['value']):.4f}",
            *(f"{found[n]:.4f}" if isinstance(found.get(n), float) else found.get(n, "") for n in names),
        )
        for kind, found in measured.items()
    ]
    return (
        f"<h2>Index {html_text(index.get('key', ''))}</h2>" + html_table(("queries", "recall", *names), rows)
        if rows
        else ""
    )


def _failed_rows(left: Traces) -> str:
    if not left.rows:
        return ""
    rows = [(row.item, row.reason, row.detail) for row in left.rows]
    all_of_them = f" <code>{html_text(left.listing)}</code> lists all of them." if left.listing else ""
    more = f"<p>The first {len(rows):,} of {left.failed:,}.{all_of_them}</p>" if left.failed > len(rows) else ""
    table = html_table(("file, address or prompt", "reason", "detail"), rows)
    return f"<h2>Failed rows: {left.failed:,}</h2>{more}{table}"


def _hosts(hosts: Mapping[str, object]) -> str:
    heads = ("requests", "ok", "failed", "slowed", "bytes")
    rows = []
    for name, value in list(hosts.items())[:_MOST_HOSTS]:
        figures = mapping(value)
        rows.append((name, *(int(number(figures.get(head))) for head in heads), text(figures.get("set_aside"))))
    more = f"<p>and {len(hosts) - _MOST_HOSTS:,} other hosts</p>" if len(hosts) > _MOST_HOSTS else ""
    return "<h2>Hosts</h2>" + html_table(("host", *heads, "set aside"), rows) + more if rows else ""


def _failures(left: Traces) -> str:
    failures = left.shards
    if not failures:
        return ""
    shown = "".join(
        f"<p>{html_text(f.get('stage', ''))}, shard {int(number(f.get('shard'))):06d}, "
        f"after {int(number(f.get('attempts')))} attempts</p>"
        f"<pre>{html_text(f.get('error', ''))}</pre>"
        for f in failures[:50]
    )
    more = f"<p>and {len(failures) - 50} more in failures.json</p>" if len(failures) > 50 else ""
    return f'<h2 class="bad">Failed shards: {len(failures):,}</h2>{shown}{more}'


def _attempts(summary: Mapping[str, object]) -> str:
    attempts = mappings(summary.get("attempts"))
    if not attempts or (len(attempts) == 1 and not attempts[0].get("error")):
        return ""
    shown = "".join(
        f"<p>{_when(text(a.get('started')))}: {_span(number(a.get('seconds')))}, "
        f"exit code {html_text(a.get('exit_code', ''))}</p>"
        + (f"<pre>{html_text(a['error'])}</pre>" if a.get("error") else "")
        for a in attempts
    )
    return f"<h2>Attempts</h2>{shown}"


def _notes(result: Mapping[str, object]) -> str:
    warnings = sequence(result.get("warnings"))
    return "<h2>Notes</h2>" + "".join(f"<p>{html_text(warning)}</p>" for warning in warnings) if warnings else ""
