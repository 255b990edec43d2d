"""What the server counts, for Prometheus."""

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

Outcome = Literal["chunk", "superseded", "late", "error"]


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        """Start at nothing."""
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "qsft_requests", "Observations answered.", ["outcome"], registry=self._registry
        )
        self._seconds = Histogram(
            "qsft_answer_seconds",
            "From an observation's arrival to its answer's departure.",
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._clients = Gauge("qsft_clients", "Open connections.", registry=self._registry)
        self._refused = Counter(
            "qsft_refused", "Connections refused: token, too many.", registry=self._registry
        )
        self._complaints = Counter(
            "qsft_complaints", "Connections closed for a bad frame.", registry=self._registry
        )

    def answered(self, outcome: Outcome, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(outcome).inc()
        self._seconds.observe(seconds)

    def clients(self, count: int) -> None:
        """Tell how many connections are open."""
        self._clients.set(count)

    def refused(self) -> None:
        """Count a connection that was not let in."""
        self._refused.inc()

    def complained(self) -> None:
        """Count a connection closed for what it sent."""
        self._complaints.inc()

    def page(self) -> tuple[bytes, str]:
        """The page for a scraper, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
