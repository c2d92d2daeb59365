"""What Prometheus reads of a server, whose processes share a folder.

The variable that names it must be set before this module is imported: the library then keeps values in files.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

requests = Counter("diffusion_requests", "Requests for images, by the status of the answer.", ["status"])
seconds = Histogram("diffusion_request_seconds", "From a request to its answer.", buckets=SECONDS)
in_flight = Gauge("diffusion_images_in_flight", "Images that were asked for and not sent.", multiprocess_mode="livesum")
images = Counter("diffusion_images", "Images that were sampled.")
batch_images = Histogram(
    "diffusion_batch_images", "Images that were sampled together.", buckets=(1, 2, 4, 8, 16, 32, 64)
)
batch_seconds = Histogram("diffusion_batch_seconds", "Of sampling a batch.", buckets=SECONDS)
version = Gauge("diffusion_model_version", "The version that is served.", multiprocess_mode="mostrecent")


def exposition() -> bytes:
    """Return the values of all processes in Prometheus' text format."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
