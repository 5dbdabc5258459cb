"""The site: `make docs`. Pages are Markdown that reads as well on a git host; the API comes from the docstrings."""

import re

import slrfast

project, author = "slrfast", "the slrfast authors"
release = version = slrfast.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme, html_title = "furo", f"slrfast {release}"
html_show_copyright = html_copy_source = False

myst_heading_anchors = 3

smartquotes = False
autodoc_typehints = "none"  # docstrings say more: shapes, dtypes, units
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Numerics", "Returns"]  # as they are written, not split into types

_LITERAL = re.compile(r"(``.+?``|:\w+:`[^`]+`)")
_SECOND_ERROR = re.compile(r"(?<=\.) (?=\w+(?:Error|Unavailable)(?:, \w+)*: )")
_MARKUP = re.compile(r"([*|\\`]|(?<=\w)_(?!\w))")


def keep_as_written(app, what, name, obj, options, lines):
    """Equations and shapes are text, not markup: escape what reStructuredText would take for it."""
    in_example, given = False, lines[:]
    lines.clear()
    for line in given:
        lines += _SECOND_ERROR.sub(f"\n{' ' * 4}", line).split("\n")  # "TypeError: this. ValueError: that."
    for i, line in enumerate(lines):
        in_example = line.lstrip().startswith(">>>") or in_example and bool(line.strip())
        if not in_example:
            parts = _LITERAL.split(line)
            lines[i] = "".join(part if k % 2 else _MARKUP.sub(r"\\\1", part) for k, part in enumerate(parts))


def skip_fields(app, what, name, obj, skip, options):
    """Fields of named tuples are told in their docstrings."""
    return True if (obj.__doc__ or "").startswith("Alias for field number") else None


def setup(app):
    app.connect("autodoc-process-docstring", keep_as_written, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", skip_fields)
