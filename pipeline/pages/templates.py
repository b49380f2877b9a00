"""Pages from templates: the only code in the project that writes HTML.

Foreign text is shown and never run: jinja2 escapes every value, control and bidirectional characters are shown as escapes, and
the content security policies of the pages forbid foreign scripts and loading from elsewhere. A name that a template uses and
the caller does not pass is an error. Reads pipeline/assets/templates; writes nothing. Importing this module does not import
jinja2; the first page does.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.installation import asset
from pipeline.terminal import printable

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


@functools.cache
def environment() -> Environment:
    """The environment of all templates. Includes find the style sheets and scripts in pipeline/assets too."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([asset("templates"), asset()]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    made.filters["figure"] = figure
    return made


def _shown(value: object) -> object:
    """A value as a template prints it, before it is escaped. Markup is not changed."""
    return value if hasattr(value, "__html__") or isinstance(value, int | float) else printable(str(value))


def render(template: str, **values: object) -> Markup:
    """A page, or a part of one: `Markup`, which a template does not escape again."""
    from markupsafe import Markup

    return Markup(environment().get_template(template).render(values))


def render_parts(template: str, **values: object) -> Iterator[str]:
    """A page in parts, for one that is too long for memory: a value may be an iterator that the template loops over."""
    return environment().get_template(template).generate(values)


def figure(value: float) -> str:
    """A number for people: thousands are separated, and a float has two decimals."""
    if isinstance(value, bool):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def html_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> Markup:
    """An HTML table with numbers on the right. A cell that is `Markup` is not escaped."""
    right = [bool(rows) and isinstance(rows[0][i], int | float) for i in range(len(headers))]
    return render("table.html", heads=headers, right=right, rows=rows)
