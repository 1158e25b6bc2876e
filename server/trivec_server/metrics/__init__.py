"""The server's Prometheus metrics, its own and Triton's, and the HTTP endpoint for them and for health probes."""

from trivec_server.metrics.endpoint import Health, MetricsEndpoint, Readiness
from trivec_server.metrics.response_cache import CacheUsage
from trivec_server.metrics.series import Metrics, ModelMetrics

__all__ = ["CacheUsage", "Health", "Metrics", "MetricsEndpoint", "ModelMetrics", "Readiness"]
