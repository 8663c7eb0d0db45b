"""Progress of a stage: a bar on a terminal, otherwise a plain line now and then."""

import re
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from predictions import progress as module
from predictions.progress import PLAIN_SECONDS, bar


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def lines(monkeypatch):
    """A function that returns the lines written so far, not to a terminal."""
    file = StringIO()
    monkeypatch.setattr(module, "console", Console(file=file, highlight=False, soft_wrap=True))
    return lambda: file.getvalue().splitlines()


@pytest.mark.parametrize(
    ("unit", "pattern"), [("rows", r"load +\S+ +375/1000 +rows +\S+"), ("", r"load +\S+ +38% +\S+")]
)
def test_a_terminal_shows_how_much_is_done(monkeypatch, unit, pattern):
    file = StringIO()
    console = Console(file=file, force_terminal=True, width=200, color_system=None, highlight=False)
    monkeypatch.setattr(module, "console", console)
    with bar("load", unit) as progress:
        progress(0, 1000)
        progress(375, 1000)
    frames = re.split(r"\x1b\[[\d;?]*[A-Za-z]|\r", file.getvalue())
    assert any(re.fullmatch(pattern, frame.strip()) for frame in frames), frames


@pytest.mark.parametrize(("unit", "line"), [("rows", "load: 450 of 1,000 rows"), ("", "load: 45%")])
def test_without_a_terminal_there_is_a_line_now_and_then(lines, clock, unit, line):
    with bar("load", unit) as progress:
        progress(150, 1000)
        assert lines() == []
        clock.now += PLAIN_SECONDS
        progress(450, 1000)
        assert lines() == [line]
        progress(500, 1000)
    assert lines() == [line]
