"""What a server's `/metrics` says."""

import time
import urllib.request
from collections.abc import Callable

from tests.scraped import Scraped, read_scrape

PATIENCE_S = 60.0
_POLL_S = 0.05


def scrape(port: int) -> Scraped:
    """One scrape of the metrics port on this machine."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as response:
        return read_scrape(response.read().decode())


def scrape_until(port: int, holds: Callable[[Scraped], bool]) -> Scraped:
    """Scrapes until it is as it should be: there is no event that tells of a counter."""
    ends_at = time.monotonic() + PATIENCE_S
    while not holds(scraped := scrape(port)):
        assert time.monotonic() < ends_at, scraped.values
        time.sleep(_POLL_S)
    return scraped
