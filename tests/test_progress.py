"""What a load shows of itself: lines that change on a terminal, a plain line now and then elsewhere."""

import re
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from predictions import progress as module
from predictions.progress import DONE, LOADING, PLAIN_SECONDS, WAITING, LoadDisplay

LOST = "waiting for HBase: ConnectException: Call to [/127.0.0.1:16020] failed [callTimeout=60000]"


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def said(monkeypatch):
    """What has been written so far, to something that is no terminal."""
    file = StringIO()
    monkeypatch.setattr(module, "console", Console(file=file, highlight=False, soft_wrap=True))
    return lambda: file.getvalue().splitlines()


@pytest.fixture
def shown(monkeypatch):
    """What a terminal shows at the end of something that is done with a display, line by line."""

    def shown(what):
        file = StringIO()
        console = Console(file=file, force_terminal=True, width=200, color_system=None, highlight=False)
        monkeypatch.setattr(module, "console", console)
        with LoadDisplay() as display:
            what(display)
        frames = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "\r", file.getvalue())
        return re.findall(r"(?:load|  part \d) .*", frames[frames.rindex("load ") :])

    return shown


def start(display, *parts, total=1000):
    display.start(total, dict(enumerate(parts)))


def test_a_terminal_shows_all_rows_and_each_part_that_is_being_loaded(shown):
    def what(display):
        start(display, (WAITING, 0), (WAITING, 0), (WAITING, 0), (WAITING, 0))
        display.update(0, LOADING, 100)
        display.update(1, LOADING, 50)
        display.update(2, LOST, 25)
        display.update(1, DONE, 250)

    whole, first, third = shown(what)
    assert re.fullmatch(r"load +\S+ +375/1000 +rows *", whole)
    assert re.fullmatch(r"  part 0 +\S+ +100/250 +loading *", first)
    assert re.fullmatch(rf"  part 2 +\S+ +25/250 +{re.escape(LOST)} *", third)


def test_a_part_that_goes_on_after_it_waited_says_so(shown):
    def what(display):
        start(display, (WAITING, 0), (WAITING, 0))
        display.update(0, LOST, 25)
        display.update(0, LOADING, 50)

    [_whole, first] = shown(what)
    assert first.split()[-1] == "loading"


def test_what_was_loaded_before_counts_from_the_start(shown):
    [whole] = shown(lambda display: start(display, (DONE, 500), (LOADING, 100)))
    assert re.search(r" 600/1000 ", whole)


def test_a_terminal_shows_speed_and_the_time_that_is_left(shown, clock):
    def what(display):
        start(display, (LOADING, 200), (WAITING, 0))  # they were there already, and are not this load's speed
        clock.now += 2
        display.update(0, LOADING, 400)

    assert "100 a second, 0:00:06 left" in shown(what)[0]


def test_elsewhere_a_line_now_and_then_has_it_all(said, clock):
    with LoadDisplay() as display:
        start(display, (WAITING, 0), (LOADING, 100), (DONE, 250), (WAITING, 0))
        display.update(1, LOADING, 150)
        assert said() == []
        clock.now += PLAIN_SECONDS
        display.update(0, LOST, 50)
        display.update(1, LOADING, 200)
        assert said() == [
            f"load: 450 of 1,000 rows, 10 a second, 0:00:55 left; 1 of 4 regions done, part 0 {LOST}, part 1 loading"
        ]
        clock.now += PLAIN_SECONDS
        display.update(0, LOADING, 100)
        display.update(0, DONE, 250)
    [_first, second] = said()
    assert second.startswith("load: 550 of 1,000 rows, ")
    assert second.endswith("1 of 4 regions done, part 0 loading, part 1 loading")


def test_a_line_without_progress_has_no_speed_and_no_time(said, clock):
    with LoadDisplay() as display:
        start(display, (WAITING, 0), (WAITING, 0))
        clock.now += PLAIN_SECONDS
        display.update(0, LOST, 0)
    assert said() == [f"load: 0 of 1,000 rows; 0 of 2 regions done, part 0 {LOST}"]


def test_when_no_region_is_being_loaded_the_line_ends_there(said, clock):
    with LoadDisplay() as display:
        start(display, (LOADING, 0), (DONE, 500))
        clock.now += PLAIN_SECONDS
        display.update(0, DONE, 500)
    assert said() == ["load: 1,000 of 1,000 rows, 50 a second, 0:00:00 left; 2 of 2 regions done"]


def test_nothing_to_load_is_no_error(said, clock, shown):
    with LoadDisplay() as display:
        start(display, (WAITING, 0), total=0)
        clock.now += PLAIN_SECONDS
        display.update(0, DONE, 0)
    assert len(said()) == 1
    assert len(shown(lambda display: start(display, (DONE, 0), total=0))) == 1
