"""The settings of Sphinx; `tox -e docs` builds the documentation into var/docs."""

import re
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))  # the package itself is not installed

_setup = ConfigParser()
_setup.read(DOCS.parent / "setup.cfg")
project = _setup["metadata"]["name"]
release = _setup["metadata"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_member_order = "bysource"
myst_heading_anchors = 4  # those that GitHub makes
html_theme = "furo"
html_title = f"{project} {release}"
# The pictures of <img> and <picture>, which Sphinx does not copy.
html_extra_path = [path.name for path in DOCS.iterdir() if path.suffix in (".png", ".svg")]
html_copy_source = html_show_copyright = False


def setup(app: Sphinx) -> None:
    app.connect("source-read", _unlink_files_of_the_checkout)
    app.connect("autodoc-process-docstring", _as_restructured_text, priority=400)  # before napoleon, at 500
    app.connect("autodoc-skip-member", _skip_undocumented_fields)


def _unlink_files_of_the_checkout(_app: Sphinx, page: str, source: list[str]) -> None:
    """Keep only the text of a link to a file outside this folder, such as ../README.md: it is not a page here."""

    def text_of(link: re.Match[str]) -> str:
        if not (DOCS / link["path"]).exists():
            logging.getLogger(__name__).warning("no such file: %s", link["path"], location=page)
        return link["text"]

    source[0] = re.sub(r"\[(?P<text>[^]]+)\]\((?P<path>\.\./[^)#]+)(#[^)]*)?\)", text_of, source[0])


def _as_restructured_text(_app: Sphinx, _kind: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Rewrite what reStructuredText and napoleon read in another way: code, and a colon in the text of `Returns:`."""
    text = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", "\n".join(lines))
    lines[:] = re.sub(r"^Returns:\n +", ":returns: ", text, flags=re.MULTILINE).split("\n")


def _skip_undocumented_fields(
    _app: Sphinx, _kind: str, _name: str, member: Any, skip: bool, _options: Any
) -> bool | None:
    """Leave out the fields of a NamedTuple, whose only documentation is Python's own."""
    return True if (getattr(member, "__doc__", "") or "").startswith("Alias for field number") else None
