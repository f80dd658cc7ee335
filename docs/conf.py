"""How Sphinx builds the documentation: ``make docs``, into build/docs.

The pages also work on GitHub. So the source is the whole checkout, and links are the same.
"""

from __future__ import annotations

import inspect
import re
import sys
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config as NapoleonConfig
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from zope.interface import Attribute
from zope.interface.interface import InterfaceClass, Method

from gearman_twisted import __version__

project = "gearman_twisted"
author = "the authors of gearman_twisted"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
source_suffix = {".md": "markdown"}
include_patterns = ["docs/**.md", "examples/README.md", "examples/*/README.md", "CONTRIBUTING.md"]
exclude_patterns = [".*", "build", "dist", "gearman_twisted", "tests"]
root_doc = "docs/index"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_title = f"gearman_twisted {release}"
# Of a console only what was typed is copied, without its prompt.
copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go"

# GitHub makes an anchor of each heading; so does this.
myst_heading_anchors = 4
# Pygments knows no Mermaid: the diagram is text here, and drawn by GitHub.
suppress_warnings = ["misc.highlighting_failure"]

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
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
    """Adapt a docstring to napoleon and reStructuredText.

    ``Returns`` has no type before its text, where napoleon expects one; a plural may follow a literal;
    options begin with hyphens, not dashes.

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
    _app: Sphinx, what: str, _name: str, _documented: object, _options: object, lines: list[str]
) -> None:
    lines[:] = to_rst("\n".join(lines) + "\n").splitlines()
    if what == "property":
        lines[:0] = ["..", ""]  # or napoleon takes what stands before a colon for a type


class PublicNames(SphinxDirective):
    """Document what a package exports in ``__all__``: ``.. public-names:: its.name``.

    A name that was documented under another package is only named. Without ``__all__``, all names count that
    the module defines and that have no underscore.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return what Sphinx puts in place of it."""
        module = import_module(self.arguments[0])
        seen: dict[int, str] = self.env.temp_data.setdefault("public_names", {})
        lines = [f".. automodule:: {module.__name__}", "   :no-members:", ""]
        known = []
        for name in exported(module):
            documented = getattr(module, name)
            if id(documented) in seen:
                known.append(f":py:obj:`{name} <{seen[id(documented)]}>`")
            else:
                seen[id(documented)] = f"{module.__name__}.{name}"
                lines += _entry(module.__name__, name, documented)
                _name_interfaces(sys.modules.get(getattr(documented, "__module__", ""), module))
        if known:
            lines += ["", f"It has the same {', '.join(known)}."]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def exported(module: ModuleType) -> list[str]:
    """Return the public names of a module, in their order; ``__version__`` and the like left out."""
    own = [
        name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__
    ]
    return [name for name in getattr(module, "__all__", own) if not name.startswith("_")]


def _name_interfaces(module: ModuleType) -> None:
    """Give interfaces that are types of arguments the names that autodoc looks for."""
    for value in vars(module).values():
        if isinstance(value, InterfaceClass):
            value.__qualname__ = value.__name__


def _entry(module: str, name: str, documented: object) -> list[str]:
    if isinstance(documented, InterfaceClass):
        return _interface(module, documented)
    if isinstance(documented, type):
        kind = "autoexception" if issubclass(documented, BaseException) else "autoclass"
        options = ["   :show-inheritance:"] if documented.__bases__ != (object,) else []
        options += _inherited(module, documented)
        if issubclass(documented, Enum):
            options.append("   :undoc-members:")
        return [f".. {kind}:: {module}.{name}", *options, ""]
    if isinstance(documented, FunctionType):
        return [f".. autofunction:: {module}.{name}", ""]
    return [f".. py:data:: {name}", f"   :module: {module}", "", *_indented(_comment(name, documented), 3)]


def _inherited(module: str, documented: type) -> list[str]:
    """Return the option for the members of base classes of ours that are not documented themselves."""
    exports = set(exported(import_module(module)))
    ours = {base for base in documented.__mro__[1:] if base.__module__.startswith("gearman_twisted.")}
    others = {
        base.__name__ for base in documented.__mro__[1:] if base not in ours or base.__name__ in exports
    }
    return [f"   :inherited-members: {', '.join(sorted(others))}"] if ours else []


def _comment(name: str, value: object) -> str:
    """Return the text that stands with a value where it is defined, which autodoc finds only there."""
    for module in list(sys.modules.values()):
        if module.__name__.startswith("gearman_twisted.") and vars(module).get(name) is value:
            docs = ModuleAnalyzer.for_module(module.__name__).find_attr_docs()
            if ("", name) in docs:
                return "\n".join(docs["", name])
    return ""


def _interface(module: str, interface: InterfaceClass) -> list[str]:
    """Return the entry of an interface of zope, which autodoc takes for a value."""
    lines = [f".. py:class:: {interface.__name__}", f"   :module: {module}", ""]
    lines += _indented(interface.__doc__, 3)
    for member, what in interface.namesAndDescriptions():
        if isinstance(what, Method):
            lines += [f"   .. py:method:: {member}{what.getSignatureString()}", ""]
        elif isinstance(what, Attribute):
            lines += [f"   .. py:attribute:: {member}", ""]
        lines += _indented(what.__doc__, 6)
    return lines


def _indented(docstring: str | None, width: int) -> list[str]:
    text = to_rst(inspect.cleandoc(docstring or "") + "\n")
    converted = GoogleDocstring(text, NapoleonConfig(napoleon_use_ivar=True)).lines()
    return [" " * width + line if line else "" for line in [*converted, ""]]


def _lead_to_index(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        (Path(app.outdir) / "index.html").write_text(_ENTRY)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything; called by Sphinx."""
    app.add_directive("public-names", PublicNames)
    app.connect("autodoc-process-docstring", _process_docstring, priority=400)  # before napoleon
    app.connect("build-finished", _lead_to_index)
    return {"parallel_read_safe": True}
