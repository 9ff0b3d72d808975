"""How Sphinx makes the documentation: `bash launch/docs.sh`."""

import hope_jax

project = "hope_jax"
author = "the hope_jax authors"
release = hope_jax.__version__

extensions = [
    "myst_parser",  # pages are Markdown
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",  # docstrings have Args, Returns and Raises
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = "hope_jax"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
# In docstrings single backquotes are code.
default_role = "code"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields are listed once
# Pages link to results beside the scripts that make them, which are no part of the site.
suppress_warnings = ["myst.xref_missing"]
