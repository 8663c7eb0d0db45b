"""The gates between a loaded release and the switch: what a release must satisfy to be served."""

from typing import Any, NamedTuple

from predictions.settings import GateSettings

# What a model is measured by on the holdout, against the baseline that knows no feature; less is better.
LOSSES = {"classification": "log_loss", "regression": "rmse"}


class Gate(NamedTuple):
    """One gate.

    Args:
        name: the setting in `[gates]` that is its limit.
        passed: whether the release satisfies it.
        text: what was found, and the limit.
    """

    name: str
    passed: bool
    text: str


def gates(limits: GateSettings, manifest: dict[str, Any], comparison: dict[str, Any] | None) -> list[Gate]:
    """Return every gate for a release.

    Args:
        limits: the settings.
        manifest: of the release, which was trained and scored.
        comparison: with the current release, or of the release alone (`predictions.stages.compare`); None where
            there is none.
    """
    found = [_skill(limits.min_skill, manifest), _failed(limits.max_failed, manifest["scored"])]
    return found + _changes(limits, comparison) if comparison and comparison["releases"]["before"] else found


def _skill(limit: float, manifest: dict[str, Any]) -> Gate:
    training, name = manifest["model"]["training"], LOSSES[manifest["task"]]
    loss, baseline = training["metrics"][name], training["baseline"][name]
    skill = 1 - loss / baseline if baseline else 0.0
    text = f"{name.replace('_', ' ')} on the holdout {loss:.4g}, of the baseline without features {baseline:.4g}"
    return Gate("min_skill", skill >= limit, f"{text}: better by {skill:.2%}, at least {limit:.2%}")


def _failed(limit: float, scored: dict[str, Any]) -> Gate:
    share = scored["failed"] / max(1, scored["rows"])
    text = f"{scored['failed']:,} of {scored['rows']:,} records could not be scored: {share:.2%}, at most {limit:.2%}"
    return Gate("max_failed", share <= limit, text)


def _changes(limits: GateSettings, found: dict[str, Any]) -> list[Gate]:
    before, both, changed = found["before"], found["both"], found["changed"]
    gone, stability = found["gone"] / max(1, before["rows"]), found["stability"]
    gates = [
        Gate(
            "max_gone",
            gone <= limits.max_gone,
            f"{found['gone']:,} of {before['rows']:,} records are gone: {gone:.2%}, at most {limits.max_gone:.2%}",
        ),
        Gate(
            "max_psi",
            stability <= limits.max_psi,
            f"population stability index {stability:.3f}, at most {limits.max_psi:g}",
        ),
    ]
    if before["classes"]:  # of numbers, all of them change a little with every model
        share = changed / max(1, both)
        text = f"{changed:,} of {both:,} predictions are another class: {share:.2%}"
        gates.append(Gate("max_changed", share <= limits.max_changed, f"{text}, at most {limits.max_changed:.2%}"))
    return gates
