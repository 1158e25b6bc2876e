"""The figures of `make bench-triton`, from loads made up."""

import pytest

from benchmarks.triton.results import Loads, as_json, figures, table


def loads_of(rates: dict[tuple[str, str, int, str], list[float]], p99_s: float = 0.1) -> Loads:
    loads = Loads()
    for key, measured in rates.items():
        for rate in measured:
            loads.of(*key).add(rate, [], p99_s * (2 if key[3] == "triton" else 1))
    return loads


def complete(trivec: float) -> Loads:
    """Every load that a figure is made of; Trivec's are `trivec` times the others'."""
    rates: dict[tuple[str, str, int, str], list[float]] = {}
    for work, concurrency in (("mixed", 8), ("mixed", 32), ("short", 32)):
        for client in ("sync", "aio"):
            rates[work, client, concurrency, "triton"] = [100.0, 200.0]
            rates[work, client, concurrency, "trivec"] = [100.0 * trivec, 200.0 * trivec]
    for count in ("1 text", "32 texts"):
        for server, factor in (("triton", 1.0), ("mlserver", 0.5), ("trivec", trivec)):
            rates[f"ready, {count}", "bytes", 32, server] = [1000.0 * factor]
    rates |= {
        ("calls, 1 text", "bytes", 32, "Embed"): [1000.0],
        ("calls, 1 text", "bytes", 32, "ModelInfer"): [950.0],
        ("calls, 32 texts", "bytes", 32, "Embed"): [1000.0],
        ("calls, 32 texts", "bytes", 32, "ModelInfer"): [990.0],
    }
    return loads_of(rates)


def test_a_figure_is_the_ratio_of_the_rates() -> None:
    made = figures(complete(trivec=1.5))
    assert made == {
        "mixed_vs_triton_c8": pytest.approx(1.5),
        "mixed_vs_triton_c32": pytest.approx(1.5),
        "p99_mixed_vs_triton_c32": pytest.approx(0.5),
        "short_vs_triton_c32": pytest.approx(1.5),
        "ready_vs_triton_1": pytest.approx(1.5),
        "ready_vs_triton_32": pytest.approx(1.5),
        "ready_vs_mlserver_1": pytest.approx(3.0),
        "ready_vs_mlserver_32": pytest.approx(3.0),
        "kserve_vs_embed": pytest.approx(0.95),
    }


def test_rounds_are_compared_one_by_one() -> None:
    """A round in which the whole machine was slow changes nothing."""
    loads = loads_of(
        {("short", "sync", 8, "triton"): [100.0, 10.0, 100.0], ("short", "sync", 8, "trivec"): [200.0, 20.0, 200.0]}
    )
    assert loads.ratio("short", 8, "trivec", "triton") == pytest.approx(2.0)


def test_of_several_clients_the_median_counts() -> None:
    loads = loads_of(
        {
            ("short", client, 8, server): [rate]
            for client, trivec in (("sync", 100.0), ("aio", 200.0), ("stream", 900.0))
            for server, rate in (("triton", 100.0), ("trivec", trivec))
        }
    )
    assert loads.ratio("short", 8, "trivec", "triton") == pytest.approx(2.0)


def test_a_percentile_is_of_the_requests_of_all_rounds() -> None:
    loads = Loads()
    load = loads.of("short", "sync", 1, "trivec")
    load.add(50.0, [0.01] * 50)
    load.add(50.0, [0.03] * 50)
    assert load.p99_s == pytest.approx(0.03)
    assert "30.0" in table(loads)[-1]
    assert as_json(loads)[0]["p99_s"] == pytest.approx(0.03)
