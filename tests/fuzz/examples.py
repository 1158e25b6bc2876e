"""How many examples hypothesis makes, and what it does not have to look at."""

import os

from hypothesis import HealthCheck, Phase, settings


def examples(count: int) -> settings:
    """So many; a failing one is made smaller and shown. In CI the same in each run, elsewhere new ones each time."""
    return settings(
        max_examples=max(1, count),
        database=None,
        derandomize="CI" in os.environ,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
