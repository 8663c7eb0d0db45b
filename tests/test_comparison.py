"""The comparison of two releases' predictions, checked against plain Python."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictions.comparison import comparison as comparisons
from predictions.comparison.comparison import AMOUNT_EDGES, Compared, Comparison
from predictions.comparison.distribution import Bins, Distribution, Lines
from predictions.errors import InputError
from predictions.formats.manifest import ModelManifest, Training
from predictions.formats.prediction_line import Place
from predictions.formats.record_line import join_lines, split_lines
from predictions.formats.row_key import row_keys

BINARY = Bins.of_model(ModelManifest(features=[], classes=[0, 1]))
THREE = Bins.of_model(ModelManifest(features=[], classes=["a", "b", "c"]))
NUMBER = Bins.of_model(ModelManifest(features=[], task="regression", training=Training(quantiles=[1.0, 2.5, 4.0])))

numbers = st.integers(-10, 70).map(lambda number: b"%.1f" % (number / 10))
shares = st.integers(34, 100).map(lambda number: b"%.2f" % (number / 100))
ANSWERS = {
    BINARY: st.tuples(st.sampled_from([b"0", b"1"]), shares),
    THREE: st.tuples(st.sampled_from([b"a", b"b", b"c"]), shares),
    NUMBER: st.tuples(numbers, st.just(b"\\N")),
}


@st.composite
def releases(draw, bins):
    """Draw the answers of two releases by record ID; None for a failed record."""
    answers = st.none() | ANSWERS[bins]
    ids = st.integers(0, 40).map(lambda number: b"%d" % number)
    return draw(st.dictionaries(ids, answers)), draw(st.dictionaries(ids, answers))


def lines(answers):
    prediction_lines = []
    for key, answer in zip(row_keys(list(answers)) if answers else [], answers.values(), strict=True):
        fields = [b"\\N", b"\\N"] if answer is None else answer
        prediction_lines.append(
            b"\t".join([key, *fields, b"0" * 16, b"1795362300000", b"bad" if answer is None else b"\\N"])
        )
    return sorted(prediction_lines)


def blocks(answers, sizes):
    """Yield the prediction lines in blocks with these numbers of lines, then in blocks of three."""
    rest = lines(answers)
    while rest:
        size = next(sizes, 3)
        yield join_lines(rest[:size])
        rest = rest[size:]


def compare(before, after, bins):
    """Compare the lines of two releases with one label."""
    return comparisons.compare(before, after, [Compared(bins)]).each[0]


def score(bins, answer):
    label, probability = answer
    if not bins.classes:
        return float(label)
    return 1 - float(probability) if len(bins.classes) == 2 and label == bins.classes[0] else float(probability)


@pytest.mark.parametrize("bins", [BINARY, THREE, NUMBER], ids=["binary", "three", "number"])
@given(st.data())
def test_it_counts_what_plain_python_counts(bins, data):
    before, after = data.draw(releases(bins))
    cuts = [iter(data.draw(st.lists(st.integers(1, 9)))) for _ in range(2)]
    comparison = compare(blocks(before, cuts[0]), blocks(after, cuts[1]), bins)
    for side, answers in ((comparison.before, before), (comparison.after, after)):
        scored = [answer for answer in answers.values() if answer]
        scores = [score(bins, answer) for answer in scored]
        assert (side.rows, side.failed) == (len(answers), len(answers) - len(scored))
        assert side.classes == (Counter(label for label, _share in scored) if bins.classes else {})
        assert side.histogram.tolist() == [
            sum(low <= value < high for value in scores)
            for low, high in zip([-math.inf, *bins.edges], [*bins.edges, math.inf], strict=True)
        ]
        assert side.mean == (pytest.approx(sum(scores) / len(scores)) if scores else None)
    both = [key for key in before if before[key] and after.get(key)]
    changed = [key for key in both if before[key][0] != after[key][0]]
    assert (comparison.both, comparison.changed) == (len(both), len(changed))
    assert (comparison.gone, comparison.appeared) == (
        len(before.keys() - after.keys()),
        len(after.keys() - before.keys()),
    )
    if bins.classes:
        assert comparison.moves == Counter((before[key][0], after[key][0]) for key in changed)
    if bins is not THREE:
        spread = 1 if bins.classes else 3
        amounts = [abs(score(bins, after[key]) - score(bins, before[key])) / spread for key in both]
        assert [change.amount for change in comparison.examples] == pytest.approx(
            sorted(filter(None, amounts))[::-1][:20]
        )
        assert comparison.amounts.sum() == len(both)
    # The state that a reducer writes has all of the comparison.
    read_back = Comparison.of_state(bins, json.loads(json.dumps(comparison.state(), allow_nan=False)))
    assert json.dumps(read_back.as_json(), allow_nan=False) == json.dumps(comparison.as_json())
    read_back.merge(comparison)
    assert (read_back.both, read_back.before.rows) == (2 * comparison.both, 2 * comparison.before.rows)


@given(releases(BINARY), st.binary(min_size=4, max_size=4))
def test_comparisons_of_two_ranges_add_up(pair, point):
    whole = compare(*(blocks(answers, iter([])) for answers in pair), BINARY)
    parts = [
        compare(
            *([join_lines(kept)] if (kept := [x for x in lines(a) if (x < point) == low]) else [] for a in pair), BINARY
        )
        for low in (True, False)
    ]
    parts[0].merge(parts[1])
    assert rounded(parts[0]) == rounded(whole)


def rounded(comparison):
    """Return a comparison as JSON, with floats rounded so that they do not depend on the order of sums."""
    return json.loads(json.dumps(comparison.as_json()), parse_float=lambda text: round(float(text), 9))


def by_number(*answers):
    """Return answers by record IDs 0, 1 and so on."""
    return {b"%d" % number: answer for number, answer in enumerate(answers)}


def test_with_three_classes_the_amount_is_the_least_probability_that_moved():
    pairs = [
        ((b"a", b"0.5"), (b"b", b"0.9"), 0.4),  # before, b had at most 0.5
        ((b"a", b"0.9"), (b"b", b"0.5"), 0.4),  # after, a has at most 0.5
        ((b"a", b"0.9"), (b"b", b"0.9"), 0.8),
        ((b"a", b"0.4"), (b"a", b"0.9"), 0.5),
    ]
    for before, after, amount in pairs:
        [change] = compare(blocks(by_number(before), iter([])), blocks(by_number(after), iter([])), THREE).examples
        assert change.amount == pytest.approx(amount)


def test_the_stability_index_is_that_of_the_formula():
    old, new = [300, 700], [450, 550]
    before = by_number(*[(b"0", b"0.95")] * old[0], *[(b"1", b"0.95")] * old[1])
    after = by_number(*[(b"0", b"0.95")] * new[0], *[(b"1", b"0.95")] * new[1])
    comparison = compare(blocks(before, iter([500])), blocks(after, iter([500])), BINARY)
    # The scores 0.05 and 0.95 count as the middle of the bin that begins there: 45% for the coarse bin below.
    spread = [(0.45 * low, 0.55 * low, *[0] * 7, 0.45 * high, 0.55 * high) for low, high in (old, new)]
    shares = [[(count + 0.5) / 1005.5 for count in side] for side in spread]
    expected = sum((b - a) * math.log(b / a) for a, b in zip(*shares, strict=True))
    assert comparison.stability == pytest.approx(expected)
    assert 0.05 < comparison.stability < 0.25
    spread_evenly = [(b"1", b"%.4f" % (number / 1000)) for number in range(1000)]

    def clump(at):
        """Return scores of which every third is the same."""
        return blocks(by_number(*spread_evenly, *[(b"1", at)] * 500), iter([]))

    moved = [compare(clump(b"0.7999"), clump(at), BINARY).stability for at in (b"0.8", b"0.85", b"0.95")]
    # A third of the scores moves: over an edge, by half a bin, by one and a half bins.
    assert moved[0] < 0.02 < 0.25 < moved[1] < moved[2]
    same = compare(blocks(before, iter([500])), blocks(before, iter([7])), BINARY)
    assert (same.stability, same.changed, same.examples) == (0, 0, [])
    assert same.amounts.tolist() == [1000, *[0] * len(AMOUNT_EDGES)]


def test_quantiles_are_near_those_of_the_scores():
    rng = np.random.default_rng(1)
    values = rng.normal(100, 15, 20_000).round(3)
    edges = np.unique(np.quantile(values[:5000], np.arange(1, 100) / 100))
    bins = Bins.of_model(ModelManifest(features=[], task="regression", training=Training(quantiles=edges.tolist())))
    side = Distribution(bins)
    for start in range(0, len(values), 700):
        answers = {b"%d" % i: (b"%.3f" % value, b"\\N") for i, value in enumerate(values[start : start + 700])}
        rows = Lines.of(join_lines(lines(answers))).rows(Place())
        side.add(rows, bins.scores(rows.predictions, rows.probabilities))
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert side.quantile(share) == pytest.approx(np.quantile(values, share), abs=0.5)
    assert (side.quantile(0), side.quantile(1)) == (values.min(), values.max())
    assert side.mean == pytest.approx(values.mean())


def test_a_malformed_line_is_refused():
    with pytest.raises(InputError, match="a prediction line has 6 fields, but this one has 2"):
        compare([b"0001:a\t1\n"], [], BINARY)
    assert split_lines(b"") == []
