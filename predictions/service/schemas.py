"""The JSON of requests and responses, as in the OpenAPI document."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, StrictStr

MAX_IDS = 1_000
Status = Literal["unavailable", "missing", "unscored", "changed", "failed", "expired", "fresh"]


def _check_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("text must not contain half of a surrogate pair") from None
    return text


class Lookup(BaseModel):
    """The record IDs to look up."""

    model_config = ConfigDict(extra="forbid")

    ids: Annotated[
        list[Annotated[StrictStr, AfterValidator(_check_text)] | StrictInt],
        Field(
            max_length=MAX_IDS, description="Text exactly as the database writes it; an integer stands for its digits."
        ),
    ]


class LabelOut(BaseModel):
    """What one of several labels says. See `predictions.LabelAnswer`."""

    prediction: Any = Field(None, description="The predicted label or value, in the label's type.")
    probability: float | None = None
    probabilities: dict[str, float] | None = None
    predictions: dict[str, float] | None = None
    contributions: dict[str, float] | None = None
    model: str | None = Field(None, description="SHA-256 of the model that made it.")
    error: str | None = Field(None, description="Why this label has no prediction, though others have one.")


class AnswerOut(BaseModel):
    """The answer to one record ID, without unknown values. See `predictions.Answer`."""

    id: str
    status: Status
    record: dict[str, Any] | None = Field(None, description="All columns of the record's row as it is now.")
    prediction: Any = Field(None, description="The predicted label or value, in the label's type.")
    probability: float | None = Field(None, description="Probability of the predicted label; classifiers only.")
    probabilities: dict[str, float] | None = Field(
        None, description="Probability of each class, if the model keeps it."
    )
    predictions: dict[str, float] | None = Field(None, description="The values of a regressor that predicts several.")
    contributions: dict[str, float] | None = Field(
        None, description="By how much features moved the model's raw score, the largest first, if the model keeps it."
    )
    labels: dict[str, LabelOut] | None = Field(
        None, description="If the release has several labels, what each says; the fields above are then absent."
    )
    release: str | None = Field(None, description="The served release.")
    scored: str | None = Field(None, description="When the prediction was made.")
    model: str | None = Field(None, description="SHA-256 of the model that made it.")
    age: int | None = Field(None, description="Seconds since it was made.")
    source: Literal["online"] | None = Field(
        None, description="Present if the prediction was computed for this answer."
    )
    error: str | None = None
    unavailable: list[Literal["hbase", "database"]] | None = None


class AnswersOut(BaseModel):
    """The answers, in the order of the IDs."""

    answers: list[AnswerOut]


class ReleaseLabelOut(BaseModel):
    """One of several labels of a release."""

    model: str
    label: str
    distribution: dict[str, Any] | None


class ReleaseOut(BaseModel):
    """A release in HBase; see `predictions releases`."""

    release: str
    role: Literal["current", "previous", "rolled back", ""]
    state: Literal["building", "loaded", "refused", "dropped"]
    rows: int | None
    failed: int | None
    estimator: str | None
    model: str | None = Field(description="SHA-256 of the model.")
    refused_by: list[str] | None = Field(description="The gates that it failed; null if they did not run.")
    forced: str | None = Field(description="Why it was activated despite that.")
    label: str | None = Field(description="The predicted column.")
    distribution: dict[str, Any] | None = Field(description="The predictions, as in `predictions compare --json`.")
    labels: list[ReleaseLabelOut] | None = Field(description="The same for each of several labels.")


class ReleasesOut(BaseModel):
    """The releases, newest first."""

    name: str
    releases: list[ReleaseOut]


class HealthOut(BaseModel):
    """Whether HBase and the database answer."""

    status: Literal["ok", "unavailable"]
    unavailable: list[Literal["hbase", "database"]]


class ErrorOut(BaseModel):
    """What is wrong with a request, in one line."""

    error: str
