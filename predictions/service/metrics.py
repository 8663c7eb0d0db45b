"""Metrics of the service, for Prometheus."""

from typing import get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from predictions.formats.names import release_time
from predictions.lookup.answer import Answer
from predictions.service.schemas import Status

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """The metrics of one service."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._answers = Counter("predictions_answers", "Answers by their status.", ["status"], registry=self._registry)
        for status in get_args(Status):
            self._answers.labels(status)  # exported as 0 before the first answer
        self._seconds = Histogram(
            "predictions_request_seconds",
            "Time of requests by route and HTTP status.",
            ["route", "code"],
            registry=self._registry,
            buckets=SECONDS,
        )
        self._release = Gauge(
            "predictions_release_timestamp_seconds",
            "Time of the release of the last answer, since 1970.",
            registry=self._registry,
        )

    def count(self, answers: list[Answer]) -> list[Answer]:
        """Count answers by status, and return them."""
        for answer in answers:
            self._answers.labels(answer.status).inc()
        if answers and (release := answers[-1].release):
            self._release.set(release_time(release).timestamp())
        return answers

    def observe(self, route: str, code: int, seconds: float) -> None:
        """Count a request by its route and the HTTP status of its response, with the time that it took."""
        self._seconds.labels(route, str(code)).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)
