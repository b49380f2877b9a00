"""Sphinx's configuration: Markdown through MyST, the Furo theme, a search box that needs no server, API pages from docstrings.

`make docs` builds docs/site and fails on any warning, a broken link between pages included. Reads docs/ and the code; writes
docs/site, and docs/reference/cli.md, toml.md and docs/guides/tour.md, which are generated.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

import notebook  # noqa: E402 (the path is set first)
import reference_pages  # noqa: E402

from pipeline.installation import version as installed  # noqa: E402

project, author, copyright = "rdmpipe", "the rdmpipe authors", "the rdmpipe authors"
version = release = installed()
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["site"]
default_role = "code"  # `name` in a docstring
myst_heading_anchors = 3
html_theme = "furo"
html_title = "rdmpipe"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#8a3b12", "color-brand-content": "#8a3b12"},
    "dark_css_variables": {"color-brand-primary": "#f0a878", "color-brand-content": "#f0a878"},
}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_mock_imports: list[str] = []
python_maximum_signature_line_length = 88
suppress_warnings = ["config.cache"]

reference_pages.write(Path(__file__).parent / "reference")
tour = Path(__file__).parent / "guides" / "tour.ipynb"
reference_pages.keep(tour.with_suffix(".md"), notebook.page(tour))
