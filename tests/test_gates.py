"""Each gate at its limit, computed from a manifest and a comparison."""

import pytest
from conftest import make_manifest
from test_comparison import BINARY, blocks, by_number, compare

from predictions.formats.manifest import ModelFacts, Scored, Training
from predictions.settings import GateSettings
from predictions.stages.activate import gates


def manifest(loss=0.5, baseline=0.6, failed=0, task="classification"):
    name = "log_loss" if task == "classification" else "rmse"
    training = Training(metrics={name: loss}, baseline={name: baseline})
    model = ModelFacts("an.Estimator", "ab" * 32, {}, training)
    return make_manifest(task=task, model=model, scored=Scored(rows=1000, failed=failed))


def verdicts(limits=None, comparison=None, **facts):
    return {gate.name: gate.passed for gate in gates(limits or GateSettings(), manifest(**facts), comparison)}


def comparison(before, after):
    compared = compare(blocks(by_number(*before), iter([])), blocks(by_number(*after), iter([])), BINARY)
    return {"releases": {"before": "20261121T154500Z"}, **compared.as_json()}


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize(("loss", "passed"), [(0.59, True), (0.595, False), (0.6, False), (0.9, False)])
def test_a_model_has_to_be_better_than_the_baseline(task, loss, passed):
    assert verdicts(loss=loss, task=task)["min_skill"] is passed


def test_a_baseline_without_a_loss_cannot_be_beaten():
    assert verdicts(loss=0.0, baseline=0.0)["min_skill"] is False


@pytest.mark.parametrize(("failed", "passed"), [(0, True), (10, True), (11, False), (20, False)])
def test_few_records_may_fail(failed, passed):
    assert verdicts(failed=failed)["max_failed"] is passed


def test_without_a_release_before_it_nothing_is_compared():
    without_before = comparison([], [(b"1", b"0.9")]) | {"releases": {"before": None}}
    for facts in (None, without_before):
        assert verdicts(comparison=facts).keys() == {"min_skill", "max_failed"}


@pytest.mark.parametrize(("gone", "passed"), [(0, True), (20, True), (21, False)])
def test_few_records_may_be_gone(gone, passed):
    answers = [(b"1", b"0.9")] * 100
    assert verdicts(comparison=comparison(answers, answers[gone:]))["max_gone"] is passed


@pytest.mark.parametrize(("changed", "passed"), [(0, True), (30, True), (31, False)])
def test_few_predictions_may_be_another_class(changed, passed):
    limits = GateSettings(max_psi=99)
    before, after = [(b"1", b"0.9")] * 100, [(b"0", b"0.9")] * changed + [(b"1", b"0.9")] * (100 - changed)
    assert verdicts(limits, comparison(before, after))["max_changed"] is passed


def test_the_distribution_may_not_move_far():
    before = [(b"1", b"0.9")] * 50 + [(b"0", b"0.9")] * 50
    assert verdicts(comparison=comparison(before, before))["max_psi"]
    moved = [(b"1", b"0.6")] * 50 + [(b"0", b"0.6")] * 50  # the same classes
    passed = verdicts(comparison=comparison(before, moved))
    assert (passed["max_psi"], passed["max_changed"]) == (False, True)


def test_a_gates_text_states_the_value_and_the_limit():
    texts = [gate.text for gate in gates(GateSettings(), manifest(failed=20), None)]
    assert texts == [
        "log loss on the holdout 0.5, baseline without features 0.6: better by 16.67%, at least 1.00%",
        "20 of 1,000 records could not be scored: 2.00%, at most 1.00%",
    ]
