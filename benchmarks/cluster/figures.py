"""What each figure may be, and how figures are printed: last, as `name value`."""

import math
import re
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
    _bound(r"lost_nginx_(hang|drain|rolling|upgrade)", most=0),
    _bound(r"(wrong|forgotten)_\w+", most=0),
    _bound(r"p99_(envoy|client|nginx)_(hang|drain|rolling|upgrade)", most=5),
    _bound(r"calls_(envoy|client|nginx)_kill", least=3000),
    _bound(r"partition_leave_s_\w+", most=3),
    _bound(r"partition_return_s_\w+", most=5),
    _bound(r"balance_max_over_mean", most=1.15),
    _bound(r"share_slow_node", least=1 / 18, most=2 / 9),
    _bound(r"goodput_overload", least=0.9),
    _bound(r"lost_overload", most=0.001),
    _bound(r"refusal_p99_s", most=0.5),
    _bound(r"recovery_s", most=2),
    _bound(r"scaling_3_nodes", least=2.7),
    _bound(r"soak_rss_growth", most=0.02),
    _bound(r"soak_(failures|fds|threads|tasks)", most=0),
)


def judge(figures: dict[str, float]) -> list[str]:
    """What is out of its bounds, a line each."""
    missed = [
        f"{name} is {value:.4g}, {_wanted(bound)} is wanted"
        for name, value in figures.items()
        for bound in BOUNDS
        if bound.names.fullmatch(name) and not bound.fits(value)
    ]
    lost, in_flight = figures.get("lost_nginx_kill", 0), figures.get("inflight_nginx_kill", 0)
    if lost > in_flight:
        missed.append(f"lost_nginx_kill is {lost:g}, at most the {in_flight:g} calls in flight may be")
    return missed


def _wanted(bound: Bound) -> str:
    wanted = [f"at least {bound.least:.4g}"] if bound.least > -math.inf else []
    wanted += [f"at most {bound.most:.4g}"] if bound.most < math.inf else []
    return " and ".join(wanted)


def print_figures(figures: dict[str, float]) -> None:
    for name, value in figures.items():
        print(f"{name} {value:.4g}")
