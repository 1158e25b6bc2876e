"""How many examples hypothesis makes, and what it does not have to look at."""

from hypothesis import HealthCheck, Phase, settings


def examples(count: int) -> settings:
    """So many; a failing one is made smaller and shown. Nothing is kept between runs."""
    return settings(
        max_examples=max(1, count),
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
