"""Sphinx: ``nox -s docs`` builds docs/_build/html."""

from importlib.metadata import version as installed_version

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

html_theme = "furo"
html_title = "asyncsched"
