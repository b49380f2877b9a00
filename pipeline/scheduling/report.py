"""An HTML page that reports one run: status, row counts, stages, recall, failed shards and rows, hosts and attempts.

The page needs no other file. Reads: the run's summary as JSON values, and what the command left in the home. Writes nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.pages import html_table, render
from pipeline.scheduling.traces import Traces
from pipeline.scheduling.values import mapping, mappings, number, sequence, text

if TYPE_CHECKING:
    from markupsafe import Markup

_MOST_HOSTS = 50  # on a page

_COUNTS = ("input", "ok", "filtered", "failed", "duplicates", "rows", "images", "pictures", "generated")

Rows = Sequence[Sequence[object]]


def run_report(summary: Mapping[str, object], left: Traces | None = None) -> str:
    """The HTML text of the page (assets/templates/run.html). A section without values is left out.

    summary: the object that `rdmpipe run --json` prints.
    """
    result, left = mapping(summary.get("result")), left or Traces({})
    attempts = mappings(summary.get("attempts"))
    hosts = mapping(result.get("hosts"))
    return render(
        "run.html",
        title=f"{summary.get('job', 'run')} {summary.get('slot', '')}",
        job=summary.get("job", "run"),
        good=summary.get("exit_code") == 0,
        status=summary.get("status", ""),
        exit_code=summary.get("exit_code", ""),
        spent=_span(sum(number(attempt.get("seconds")) for attempt in attempts)),
        command=shlex.join(map(str, sequence(summary.get("command")))),
        slot=summary.get("slot", ""),
        host=summary.get("host", ""),
        started=_when(summary),
        ended=_when(summary, "ended"),
        failures=[_failure(found) for found in left.shards],
        named=" ".join(str(result[name]) for name in ("name", "version") if isinstance(result.get(name), str)),
        counts=_table(("", "rows"), [(name, result[name]) for name in _COUNTS if isinstance(result.get(name), int)]),
        stages=_stages(left.progress, result),
        reasons=_pairs(mapping(result.get("reasons")), "reason", "rows"),
        failed=left.failed,
        shown=len(left.rows),
        listing=left.listing,
        rows=_table(("file, address or prompt", "reason", "detail"), [(r.item, r.reason, r.detail) for r in left.rows]),
        left_out=_pairs(mapping(result.get("left_out")), "kind", "files"),
        hosts=_hosts(hosts),
        more_hosts=len(hosts) - _MOST_HOSTS,
        changes=_pairs(mapping(result.get("changes")), "change", "rows"),
        index=mapping(result.get("index")).get("key", ""),
        recall=_recall(mapping(result.get("index"))),
        attempts=[_attempt(found) for found in attempts] if len(attempts) > 1 or _failed(attempts) else [],
        notes=sequence(result.get("warnings")),
    )


def _table(headers: Sequence[str], rows: Rows) -> Markup | str:
    return html_table(headers, rows) if rows else ""


def _when(values: Mapping[str, object], name: str = "started") -> str:
    return text(values.get(name)).replace("T", " ").replace("+00:00", " UTC")


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def _failure(found: Mapping[str, object]) -> Mapping[str, object]:
    shard, attempts = int(number(found.get("shard"))), int(number(found.get("attempts")))
    return {"stage": found.get("stage", ""), "shard": shard, "attempts": attempts, "error": found.get("error", "")}


def _failed(attempts: Sequence[Mapping[str, object]]) -> bool:
    return any(attempt.get("error") for attempt in attempts)


def _attempt(found: Mapping[str, object]) -> Mapping[str, object]:
    spent = _span(number(found.get("seconds")))
    return {
        "started": _when(found),
        "spent": spent,
        "exit_code": found.get("exit_code", ""),
        "error": found.get("error"),
    }


def _stages(progress: Mapping[str, object], result: Mapping[str, object]) -> Markup | str:
    from markupsafe import Markup

    track = Markup('<div class="track"><div style="width:{:.1f}%"></div></div>')
    shards = mapping(result.get("shards"))
    rows = []
    for name, value in mapping(progress.get("stages")).items():
        state = mapping(value)
        done, total, failed, count = (int(number(state.get(key))) for key in ("done", "shards", "failed", "rows"))
        bar = track.format(100.0 * done / total if total else 0.0)
        ran = mapping(shards.get(name)).get("ran", "")
        rows.append((name, bar, done, total, ran, failed, count, float(number(state.get("rows_per_second")))))
    return _table(("stage", "", "shards done", "of", "of them now", "failed", "rows now", "rows a second"), rows)


def _pairs(values: Mapping[str, object], what: str, count: str) -> Markup | str:
    return _table((what, count), sorted(values.items(), key=lambda pair: -number(pair[1])))


def _recall(index: Mapping[str, object]) -> Markup | str:
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
    return _table(("queries", "recall", *names), rows)


def _hosts(hosts: Mapping[str, object]) -> Markup | str:
    heads = ("requests", "ok", "failed", "slowed", "bytes")
    rows = []
    for name, value in list(hosts.items())[:_MOST_HOSTS]:
        figures = mapping(value)
        rows.append((name, *(int(number(figures.get(head))) for head in heads), text(figures.get("set_aside"))))
    return _table(("host", *heads, "set aside"), rows)
