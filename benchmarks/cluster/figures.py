"""What each figure may be, and how figures are printed: last, as `name value`."""

import math
import re
import statistics
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bound:
    """The least or the most that figures of a name may be."""

    names: re.Pattern[str]
    least: float = -math.inf
    most: float = math.inf

    def fits(self, value: float) -> bool:
        return self.least <= value <= self.most


def _bound(names: str, *, least: float = -math.inf, most: float = math.inf) -> Bound:
    return Bound(re.compile(names), least, most)


BOUNDS = (
    _bound(r"lost_(envoy|client)_\w+", most=0),
    _bound(r"lost_nginx_(?!kill)\w+", most=0),
    _bound(r"stale_\w+", most=0),
    _bound(r"fresh_\w+", least=100),
    _bound(r"lost_slow_node", most=0),
    _bound(r"(wrong|forgotten)_\w+", most=0),
    _bound(r"p99_(envoy|client|nginx)_(hang|drain|rolling|upgrade)", most=5),
    _bound(r"calls_(envoy|client|nginx)_kill", least=3000),
    _bound(r"calls_(envoy|client|nginx)_(?!kill)\w+", least=300),
    _bound(r"partition_leave_s_\w+", most=3),
    _bound(r"partition_return_s_\w+", most=5),
    _bound(r"balance_\w+", most=1.15),
    _bound(r"share_slow_node", least=1 / 18, most=2 / 9),
    _bound(r"goodput_overload", least=0.9),
    _bound(r"lost_overload", most=0),
    _bound(r"refused_overload", least=0.5),
    _bound(r"refusal_p99_s", most=0.5),
    _bound(r"recovery_s", most=2),
    _bound(r"scaling_3_nodes", least=2.7),
    _bound(r"soak_rss_growth", most=0.02),
    _bound(r"soak_(failures|fds|threads|tasks)", most=0),
)

_COUNTED = re.compile(
    r"(lost|calls|inflight|retried|wrong|forgotten|stale|fresh)_(envoy|client|nginx|slow)|soak_failures"
)
_TIMING = re.compile(r"p99|balance|share|goodput|refusal|recovery|scaling|partition_|soak_rss")


def judge(figures: dict[str, float]) -> dict[str, str]:
    """What is out of its bounds: the figure's name, and a line that says so."""
    missed = {
        name: f"{name} is {value:.4g}, {wanted(bound)} is wanted"
        for name, value in figures.items()
        for bound in BOUNDS
        if bound.names.fullmatch(name) and not bound.fits(value)
    }
    lost, in_flight = figures.get("lost_nginx_kill", 0), figures.get("inflight_nginx_kill", 0)
    if lost > in_flight:
        missed["lost_nginx_kill"] = (
            f"lost_nginx_kill is {lost:g}; of them {in_flight:g} were in flight on a killed node"
        )
    return missed


def is_timing(name: str) -> bool:
    """Whether a figure depends on how busy the machine is. What is lost, wrong or left over does not."""
    return _TIMING.match(name) is not None


def wanted(bound: Bound) -> str:
    """In words."""
    words = [f"at least {bound.least:.4g}"] if bound.least > -math.inf else []
    words += [f"at most {bound.most:.4g}"] if bound.most < math.inf else []
    return " and ".join(words)


def combine(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Of several rounds: what was counted is added up, of all else the median counts."""
    found: dict[str, float] = {}
    for figures in rounds:
        for name in figures:
            values = [each[name] for each in rounds if name in each]
            found[name] = sum(values) if _COUNTED.match(name) else statistics.median(values)
    balances = [value for name, value in found.items() if name.startswith("balance_")]
    return found | ({"balance_max_over_mean": max(balances)} if balances else {})


def print_figures(figures: dict[str, float]) -> None:
    for name, value in figures.items():
        print(f"{name} {value:.4g}")
