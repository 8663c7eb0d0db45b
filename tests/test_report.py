"""The report: its figures, and its page, which loads nothing from elsewhere and shows all values as text."""

import json
import re
import warnings
from html.parser import HTMLParser

import pytest
from conftest import make_manifest

from predictions.comparison.comparison import Compared, compare
from predictions.comparison.distribution import SHARES, Bins
from predictions.formats.id_digest import IdDigest
from predictions.formats.manifest import Export, ModelFacts, Scored, Training
from predictions.formats.row_key import row_keys
from predictions.hbase.releases import Known
from predictions.report import figures
from predictions.report.report import render

BOUNDS = [0.0, 0.5, 1.0]
FIGURES = {
    "distribution": lambda: figures.distribution("p", "share", BOUNDS, [("then", [0.5, 0.5]), ("now", [0.2, 0.8])]),
    "one side": lambda: figures.distribution("p", "share", BOUNDS, [("now", [0.2, 0.8])]),
    "no bins": lambda: figures.distribution("p", "share", [1.0], [("now", [])]),
    "classes": lambda: figures.classes(["a", "b"], [("then", [0.5, 0.5]), ("now", [0.2, 0.8])]),
    "drift": lambda: figures.drift("p", ["0", "1"], [0.1, 0.2]),
    "calibration": lambda: figures.calibration("p", [0.1, 0.9], [0.2, 0.8]),
    "amounts": lambda: figures.amounts("p", ["less", "0.1"], [10, 3]),
    "durations": lambda: figures.durations(["export", "train"], [1.0, 2.5]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_takes_the_colours_of_its_page_and_is_the_same_each_time(name):
    drawing, again = (figures.svg(FIGURES[name](), name) for _ in range(2))
    assert drawing == again
    assert re.findall(r"#[0-9a-f]{6}\b", drawing) == []
    assert "var(--now)" in drawing
    # It fills the width of its container, and its references lead only to elements of the figure itself.
    assert re.search(r"<svg[^>]* (width|height)=", drawing) is None
    identifiers = re.findall(r'\bid="([^"]*)"', drawing)
    assert set(re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', drawing)) <= {
        pair for identifier in identifiers for pair in ((identifier, ""), ("", identifier))
    }
    other_drawing = figures.svg(FIGURES[name](), f"another {name}")
    assert not set(identifiers) & set(re.findall(r'\bid="([^"]*)"', other_drawing))
    assert figures.png(FIGURES[name]()).startswith(b"\x89PNG")


class Page(HTMLParser):
    """A page's text, its tags, and the addresses that a browser would load from elsewhere."""

    def __init__(self, html):
        super().__init__()
        self.text, self.loaded, self.open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value[0] != "#"]

    def handle_data(self, data):
        self.text.append(data)


MANIFEST = make_manifest(
    export=Export(rows=3, labelled=2, id_digest=IdDigest(255), seconds=1.5),
    task="classification",
    model=ModelFacts(
        "sklearn.linear_model.LogisticRegression",
        "ab" * 32,
        {"scikit-learn": "1.9.0"},
        Training(
            fitted=8,
            holdout=2,
            metrics={"log_loss": 0.4},
            baseline={"log_loss": 0.6},
            calibration=[{"predicted": 0.25, "actual": 0.5, "records": 2}],
            seconds=2.0,
        ),
    ),
    scored=Scored(rows=3, split_points=["8000"], job="job_1_0002", seconds=3.0),
)


def compared(before, after):
    """Return the comparison of two blocks of lines, as the storage holds it."""
    bins = Bins((b"0", b"1"), SHARES)
    comparison = compare([before] if before else [], [after], [Compared(bins)])
    releases = {"before": "20261121T154500Z" if before else None, "after": "20261122T154500Z"}
    return json.loads(json.dumps({"releases": releases, **comparison.as_json()}))


def line(name, prediction, probability, error="\\N"):
    return f"{row_keys([name.encode()])[0].decode()}\t{prediction}\t{probability}\t00ff\t1\t{error}\n".encode()


BEFORE = b"".join(sorted(line(f"<b>{n}</b>", 0, 0.9) for n in range(3)))
AFTER = b"".join(
    sorted(
        [
            line("<b>0</b>", 1, 0.8),
            line("<b>1</b>", 0, 0.7),
            line("<b>2</b>", "\\N", "\\N", "amount: <script>x</script>"),
        ]
    )
)


def test_any_label_is_drawn_as_it_is_without_warnings():
    names = ["tab\there", "$\\frac{$ and $", "日本", "plain"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = figures.classes(names, [(name, [0.25] * 4) for name in names[:2]])
        assert figures.png(figure)
        texts = Page(figures.svg(figure, "classes")).text
    assert {"tab\N{REPLACEMENT CHARACTER}here", "$\\frac{$ and $", "日本", "plain"} <= set(texts)


@pytest.mark.parametrize("before", [BEFORE, None])
def test_the_page_is_self_contained_and_shows_all_values_as_text(before):
    verdict = {"gates": [{"name": "max_failed", "passed": False, "text": "1 of 3"}], "forced": "<i>because</i>"}
    html, pictures = render("orders", "current", Known("loaded", MANIFEST, verdict), MANIFEST, compared(before, AFTER))
    page = Page(html)
    text = " ".join(" ".join(page.text).split())
    assert page.loaded == []
    assert not {"script", "b>0", "i"} & set(page.open)
    for expected in (
        "amount: <script>x</script>",
        "<i>because</i>",
        "gates.max_failed",
        "job_1_0002",
        "ab" * 32,
        "8 records",
    ):
        assert expected in text
    assert page.open.count("svg") == len(pictures) == (6 if before else 4)
    assert ("<b>0</b> 0 (0.9) 1 (0.8)" in text, "population stability" in text) == (bool(before), bool(before))
