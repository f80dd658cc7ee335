"""How Sphinx builds the documentation: ``make docs``, into build/docs.

The pages are written for GitHub as well; what stands here makes the same text work in both places. So the
source is the whole checkout, and links from one directory to another are links there too.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config as NapoleonConfig
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util.docutils import SphinxDirective
from zope.interface import Attribute
from zope.interface.interface import InterfaceClass, Method

from gearman_twisted import __version__

project = "gearman_twisted"
author = "the authors of gearman_twisted"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
include_patterns = ["docs/**.md", "examples/README.md", "examples/*/README.md", "CONTRIBUTING.md"]
exclude_patterns = [".*", "build", "dist", "gearman_twisted", "tests"]
root_doc = "docs/index"
html_theme = "alabaster"
html_theme_options = {
    "description": "A Gearman job server, client and worker on Twisted",
    "page_width": "1100px",
    "sidebar_width": "240px",
    "body_max_width": "none",
}

# GitHub makes an anchor of each heading; so does this.
myst_heading_anchors = 4
# Pygments knows no Mermaid: the diagram is text here, and drawn by GitHub.
suppress_warnings = ["misc.highlighting_failure"]

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_numpy_docstring = False
# Attributes stand in the docstrings of their classes, and only there.
napoleon_use_ivar = True
napoleon_custom_sections = [("Members", "params_style")]

_ENTRY = '<!DOCTYPE html><title>Docs</title><meta http-equiv="refresh" content="0; url=docs/index.html">\n'

_RETURNS = re.compile(r"^( *)Returns:\n((?:\1 +\S.*\n|\n)+)", re.MULTILINE)
_LITERAL = re.compile(r"(``[^`]+``)(\w?)|(?<!\S)--[a-z][a-z-]*")


def to_rst(text: str) -> str:
    """Makes of a docstring what napoleon and reStructuredText take for what it is.

    There is no type before the text of ``Returns``, where napoleon would look for one; a plural may stand
    right behind a literal; and options begin with hyphens, not dashes.

    Args:
        text: a docstring, with a line feed at its end.
    """

    def field(found: re.Match[str]) -> str:
        lines = inspect.cleandoc(found[2]).splitlines()
        return "\n".join(
            [f"{found[1]}:returns: {lines[0]}", *(f"{found[1]}    {line}" for line in lines[1:]), "", ""]
        )

    def literal(found: re.Match[str]) -> str:
        if found[1] is None:
            return f"``{found[0]}``"
        return f"{found[1]}\\ {found[2]}" if found[2] else found[1]

    return _LITERAL.sub(literal, _RETURNS.sub(field, text))


def _process_docstring(
    _app: Sphinx, what: str, _name: str, documented: object, _options: object, lines: list[str]
) -> None:
    lines[:] = to_rst("\n".join(lines) + "\n").splitlines()
    if what == "property":
        lines[:0] = ["..", ""]  # or napoleon takes what stands before a colon for a type
    elif what == "module":
        # Their names, where they are types of arguments.
        for value in vars(documented).values():
            if isinstance(value, InterfaceClass):
                value.__qualname__ = value.__name__


class ZopeInterface(SphinxDirective):
    """Documents an interface of zope, which autodoc takes for a value: ``.. zope-interface:: its.name``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """What Sphinx puts in place of it."""
        module, _, name = self.arguments[0].rpartition(".")
        interface: InterfaceClass = getattr(import_module(module), name)
        lines = [f".. py:class:: {interface.__name__}", f"   :module: {module}", ""]
        lines += self._indented(interface.__doc__, 3)
        for member, what in interface.namesAndDescriptions():
            if isinstance(what, Method):
                lines += [f"   .. py:method:: {member}{what.getSignatureString()}", ""]
            elif isinstance(what, Attribute):
                lines += [f"   .. py:attribute:: {member}", ""]
            lines += self._indented(what.__doc__, 6)
        return self.parse_text_to_nodes("\n".join(lines))

    def _indented(self, docstring: str | None, width: int) -> list[str]:
        text = to_rst(inspect.cleandoc(docstring or "") + "\n")
        converted = GoogleDocstring(text, NapoleonConfig(napoleon_use_ivar=True)).lines()
        return [" " * width + line if line else "" for line in [*converted, ""]]


def _lead_to_index(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        (Path(app.outdir) / "index.html").write_text(_ENTRY)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("zope-interface", ZopeInterface)
    app.connect("autodoc-process-docstring", _process_docstring, priority=400)  # before napoleon
    app.connect("build-finished", _lead_to_index)
    return {"parallel_read_safe": True}
