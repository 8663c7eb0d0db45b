"""Look up records and their predictions from Python, and handle each status of an answer.

    .venv/bin/python examples/lookup.py 1 2 336776          in the folder with predictions.toml

It prints a line for each ID. The exit code is 4 if HBase or the database did not answer, as of `predictions get`.
"""

import sys

from predictions import Answer, Client


def prediction(answer: Answer) -> str:
    """Return the prediction as text, or why the release has none for the record."""
    if answer.prediction is None:
        return f"no prediction: {answer.error}"
    if answer.probability is None:  # a regressor gives none
        return str(answer.prediction)
    return f"{answer.prediction}, probability {answer.probability:.3f}"


def describe(answer: Answer) -> str:
    """Return what a program would do with the answer."""
    match answer.status:
        case "fresh" | "failed":
            return prediction(answer)
        case "expired":
            return f"{prediction(answer)}; scored {answer.scored}: has the nightly run stopped?"
        case "changed":
            return f"{prediction(answer)}; the record has changed since {answer.scored}"
        case "unscored":
            return f"no prediction yet: the record is not in release {answer.release}"
        case "missing":
            return "the database has no record with this ID"
        case "unavailable":  # the record or the prediction may be there: only one service failed
            return f"try again later: {answer.error}"
        case _:
            raise ValueError(answer.status)


def main() -> int:
    with Client(max_age=7 * 24 * 3600) as client:  # a prediction that is older than a week is `expired`
        answers = client.get_many(sys.argv[1:])  # the same as `get` for each ID, but with fewer requests
    for answer in answers:
        print(f"{answer.id}: {answer.status}: {describe(answer)}")
    return 4 if any(answer.status == "unavailable" for answer in answers) else 0


if __name__ == "__main__":
    sys.exit(main())
