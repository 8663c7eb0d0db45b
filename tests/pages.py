"""The code blocks of README.md and the pages in docs, for tests to run."""

import re
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent
PAGES = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^>]+) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """A code block: the line number of its first line, its language, its text, and the comment right above it."""

    line: int
    language: str
    text: str
    mark: str | None


def blocks_of(page):
    """Return the code blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(text.count("\n", 0, match.start("text")) + 1, match["language"], match["text"], match["mark"])
        for match in _BLOCK.finditer(text)
    ]


def as_script(blocks):
    """Return shell and Python blocks as one shell script."""
    return "".join(
        block.text if block.language == "sh" else f"python - <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK\n"
        for block in blocks
    )
