"""Sphinx: ``nox -s docs`` builds docs/_build/html."""

import importlib
from importlib.metadata import version as installed_version

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

project = "asyncsched"
author = "The asyncsched authors"
copyright = f"2026, {author}"
release = version = installed_version("asyncsched")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

html_theme = "furo"
html_title = "asyncsched"


class CapabilityTable(Directive):
    """``{capabilities}``: what each named store class (``module:Class``, one on a line) says that it can do."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        stores = [_load(line) for line in self.content if line.strip()]
        fields = stores[0].capabilities.__struct_fields__
        rows = [["", *(store.__name__ for store in stores)]]
        for field in fields:
            values = [getattr(store.capabilities, field) for store in stores]
            rows.append([field.replace("_", " "), *(_shown(value) for value in values)])
        return [_table(rows)]


def _load(reference: str) -> type:
    module, _, name = reference.strip().partition(":")
    return getattr(importlib.import_module(module), name)


def _shown(value: object) -> str:
    return {True: "yes", False: "no"}.get(value, str(value))


def _table(rows: list[list[str]]) -> nodes.table:
    group = nodes.tgroup(cols=len(rows[0]))
    group += [nodes.colspec(colwidth=1) for _ in rows[0]]
    head, body = nodes.thead(), nodes.tbody()
    for number, cells in enumerate(rows):
        row = nodes.row()
        for cell in cells:
            row += nodes.entry("", nodes.paragraph(text=cell))
        (body if number else head).append(row)
    group += [head, body]
    return nodes.table("", group)


def setup(app: Sphinx) -> None:
    app.add_directive("capabilities", CapabilityTable)
