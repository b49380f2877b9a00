"""HTML building blocks of reports: the page around them, the style sheet, escaped text, numbers and tables.

Foreign text is shown and never run: it is escaped, control and bidirectional characters are shown as escapes, and a content
security policy forbids scripts and loading from elsewhere. Long words are broken, so that they do not widen the page. Reads and
writes nothing.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from pipeline.terminal import printable

STYLE = """
:root { color-scheme: light dark; --ink: #1e1b17; --soft: #6d655a; --line: #ddd5c8; --paper: #fbf9f5; --bar: #4d6b57;
  --bad: #a5382b }
@media (prefers-color-scheme: dark) { :root { --ink: #ece6dc; --soft: #a49b8d; --line: #3d3830; --paper: #1a1815;
  --bar: #86ab92; --bad: #e0796b } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 56rem;
  margin: 2.5rem auto; padding: 0 1.25rem; overflow-wrap: anywhere }
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
.scroll { overflow-x: auto } td, th { overflow-wrap: normal; max-width: 40rem } td { overflow-wrap: break-word }
"""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def html_page(title: object, body: str, style: str = "") -> str:
    """A whole page. body: markup; style: rules that follow STYLE."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{html_text(title)}</title><style>{STYLE}{style}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def html_text(value: object) -> str:
    return html.escape(html_number(value) if isinstance(value, int | float) else printable(str(value)))


def html_number(value: float) -> str:
    if isinstance(value, bool):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def html_table(headers: Sequence[str], rows: Sequence[Sequence[object]], raw: bool = False) -> str:
    """An HTML table with numbers on the right. raw: text cells are already markup and are not escaped."""

    def cell(value: object, tag: str = "td") -> str:
        if isinstance(value, int | float):
            return f'<{tag} class="n">{html_text(value)}</{tag}>'
        return f"<{tag}>{value if raw else html_text(value)}</{tag}>"

    numeric = [bool(rows) and isinstance(rows[0][i], int | float) for i in range(len(headers))]
    names = "".join(
        f'<th class="n">{html_text(h)}</th>' if n else f"<th>{html_text(h)}</th>"
        for h, n in zip(headers, numeric, strict=True)
    )
    body = "".join("<tr>" + "".join(cell(value) for value in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'
