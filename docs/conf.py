"""The documentation: sphinx-build -W -n docs docs/_build/html"""

import importlib.util
import os
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS), str(ROOT)]

import api_modules  # noqa: E402
import docstrings  # noqa: E402

project = "mbv3_jax"
author = "The mbv3_jax authors"
copyright = author
try:
    release = metadata.version("mbv3_jax")
except metadata.PackageNotFoundError:
    release = "0.1.0"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_copybutton",
]

# Fields of dataclasses are described once, by autodoc.
napoleon_use_ivar = True
exclude_patterns = ["_build", "jupyter_execute"]

# Pages.
smartquotes = False  # they would turn --config into one dash
html_theme = "furo"
html_title = "mbv3_jax"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sourcelink = False
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"
myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3

# Notebooks. MBV3_DOCS_EXECUTE=off builds the pages without running them; "cache" keeps results.
nb_execution_mode = os.environ.get("MBV3_DOCS_EXECUTE", "force")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

# The API reference. No inventories of other projects are fetched, so that a build needs no
# network, and modules that only the package itself uses have no page: types in signatures need not
# resolve. Links and roles that a page writes must.
nitpicky = True
nitpick_ignore_regex = [(r"py:(class|exc|obj)", r".*")]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False
_OPTIONAL = (
    "ai_edge_litert",
    "flatbuffers",
    "h5py",
    "huggingface_hub",
    "litert_converter",
    "onnx",
    "onnxruntime",
    "pymoo",
    "safetensors",
    "tensorflow",
    "torch",
)
autodoc_mock_imports = [name for name in _OPTIONAL if importlib.util.find_spec(name) is None]


_API_INDEX = """API reference
=============

Made from the docstrings, a page for each room of the package. Imports point one way: ``core``,
then ``arch``, then ``nn`` and ``data``, which do not know each other, then ``run`` and ``train``,
and on top of these ``quant``, ``interop``, ``export``, ``latency``, ``search`` and ``sweep``.
``report`` reads run folders. Most programs need only the names that ``import mbv3_jax`` has, see
:doc:`/getting_started`.

.. toctree::

"""


def _write_api_pages() -> None:
    folder = DOCS / "api"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for room, modules in api_modules.ROOMS.items():
        lines = [f"{room}\n{'=' * len(room)}\n"]
        if (ROOT / "mbv3_jax" / room).is_dir():
            lines.append(f".. automodule:: mbv3_jax.{room}\n   :no-members:\n   :no-index:\n")
        for module in modules:
            lines.append(f"{module}\n{'-' * len(module)}\n")
            lines.append(f".. automodule:: {module}\n   :members:\n")
        (folder / f"{room}.rst").write_text("\n".join(lines))
    (folder / "index.rst").write_text(
        _API_INDEX + "\n".join(f"   {room}" for room in api_modules.ROOMS)
    )


def _copy_examples() -> None:
    """The notebooks live in examples/, where GitHub shows them; Sphinx wants them below docs/."""
    folder = DOCS / "examples"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "examples", folder, ignore=shutil.ignore_patterns(".*", "runs"))


_write_api_pages()
_copy_examples()


# Pages link to files outside of docs/ as GitHub needs it; on the site these are pages too.
_PAGES = {
    "benchmarks/RESULTS.md": "results/speed.md",
    "benchmarks/SCALING.md": "results/scaling.md",
    "benchmarks/EXPORT.md": "results/export.md",
    "benchmarks/LATENCY.md": "results/latency.md",
    "benchmarks/SEARCH.md": "results/search.md",
    "README.md#status": "status.md",
    "examples/": "examples/",
}


def _link_to_pages(app, docname: str, source: list[str]) -> None:
    for outside, page in _PAGES.items():
        source[0] = re.sub(rf"\]\((\.\./)+{re.escape(outside)}", f"](/{page}", source[0])


def setup(app):
    app.connect("source-read", _link_to_pages)
    app.connect("autodoc-process-docstring", docstrings.process, priority=100)
