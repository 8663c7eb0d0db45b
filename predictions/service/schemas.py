"""What the service takes and gives, as its OpenAPI document tells it."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, StrictStr

MAX_IDS = 1_000
Status = Literal["unavailable", "missing", "unscored", "changed", "failed", "expired", "fresh"]


def _check_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is no text") from None
    return text


class Lookup(BaseModel):
    """Which records are looked up."""

    model_config = ConfigDict(extra="forbid")

    ids: Annotated[
        list[Annotated[StrictStr, AfterValidator(_check_text)] | StrictInt],
        Field(max_length=MAX_IDS, description="Text exactly as the database writes it; a number is its digits."),
    ]


class AnswerOut(BaseModel):
    """What is known of one record ID; what is not known is left out. See `predictions.Answer`."""

    id: str
    status: Status
    record: dict[str, Any] | None = Field(None, description="All columns of the record's row as it is now.")
    prediction: Any = Field(None, description="The predicted label or value, in the label's type.")
    probability: float | None = Field(None, description="Of the predicted label; classifiers only.")
    release: str | None = Field(None, description="The release that is current.")
    scored: str | None = Field(None, description="When the prediction was made.")
    model: str | None = Field(None, description="SHA-256 of the model that made it.")
    age: int | None = Field(None, description="Seconds since it was made.")
    source: Literal["online"] | None = Field(None, description="There where it was computed for this answer.")
    error: str | None = None
    unavailable: list[Literal["hbase", "database"]] | None = None


class AnswersOut(BaseModel):
    """The answers, in the order of the IDs."""

    answers: list[AnswerOut]


class ReleaseOut(BaseModel):
    """A release that was loaded; see `predictions releases`."""

    release: str
    role: Literal["current", "previous", "rolled back", ""]
    state: Literal["building", "loaded", "refused", "dropped"]
    rows: int | None
    failed: int | None
    estimator: str | None
    model: str | None = Field(description="SHA-256 of the model.")
    refused_by: list[str] | None = Field(description="The gates that it did not pass; null where they were not asked.")
    forced: str | None = Field(description="Why it became current all the same.")
    label: str | None = Field(description="What is predicted.")
    distribution: dict[str, Any] | None = Field(description="Of its predictions, as in `predictions compare --json`.")


class ReleasesOut(BaseModel):
    """The releases, the newest first."""

    name: str
    releases: list[ReleaseOut]


class HealthOut(BaseModel):
    """Whether both halves of an answer can be had."""

    status: Literal["ok", "unavailable"]
    unavailable: list[Literal["hbase", "database"]]


class ErrorOut(BaseModel):
    """What is wrong with a request, in a line."""

    error: str
