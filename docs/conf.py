"""How Sphinx makes the documentation: `bash launch/docs.sh`."""

import logging
import os
from pathlib import Path

import hope_jax

# Notebooks run in processes of their own, and in other folders: there, too, they see this package.
_PACKAGE = str(Path(hope_jax.__file__).parents[1])
os.environ["PYTHONPATH"] = os.pathsep.join([_PACKAGE, os.environ.get("PYTHONPATH", "")])

project = "hope_jax"
author = "the hope_jax authors"
release = hope_jax.__version__

extensions = [
    "myst_nb",  # pages are Markdown, or notebooks
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",  # docstrings have Args, Returns and Raises
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = "hope_jax"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
# Notebooks lie there without outputs, and are run while the site is made. One that fails is an error.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
logging.getLogger("traitlets").setLevel(logging.WARNING)  # which notebook is run
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
