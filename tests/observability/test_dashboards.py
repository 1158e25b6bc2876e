"""Every query of the dashboards is answered by a real Prometheus that scrapes a real server at work."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from tests.observability.monitoring import DEPLOY, ROOT, Monitor

BOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
}
VARIABLES = {"$__rate_interval": "10s", "$job": ".*", "$instance": ".*", "$model": ".*"}

NEEDS_A_GPU = "nv_gpu_"
NEEDS_AN_ALERT = "ALERTS{"


@dataclass(frozen=True)
class Query:
    board: str
    panel: str
    expr: str

    def __str__(self) -> str:
        return f"{self.board}: {self.panel}: {self.expr}"

    @property
    def promql(self) -> str:
        expr = self.expr
        for variable, value in VARIABLES.items():
            expr = expr.replace(variable, value)
        assert "$" not in expr, f"a variable that is not known here: {expr}"
        return expr

    @property
    def needs_an_event(self) -> bool:
        return NEEDS_A_GPU in self.expr or NEEDS_AN_ALERT in self.expr


def queries() -> Iterator[Query]:
    for board, content in BOARDS.items():
        for panel in content["panels"]:
            for target in panel.get("targets", ()):
                yield Query(board, panel["title"], target["expr"])
        for annotation in content["annotations"]["list"]:
            yield Query(board, annotation["name"], annotation["expr"])


QUERIES = list(queries())


@pytest.mark.parametrize("query", [query for query in QUERIES if not query.needs_an_event], ids=str)
def test_a_query_has_an_answer(prometheus_of_load: Monitor, query: Query) -> None:
    prometheus_of_load.wait_for_series(query.promql)


@pytest.mark.parametrize("query", [query for query in QUERIES if query.needs_an_event], ids=str)
def test_a_query_about_what_is_not_here_is_understood(prometheus_of_load: Monitor, query: Query) -> None:
    prometheus_of_load.query(query.promql)


@pytest.mark.parametrize("board", BOARDS)
def test_a_variable_finds_values(prometheus_of_load: Monitor, board: str) -> None:
    for variable in BOARDS[board]["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert found
            promql = Query(board, variable["name"], found[1]).promql
            series = prometheus_of_load.wait_for_series(promql)
            assert all(labels[found[2]] for labels, _ in series)


@pytest.mark.parametrize("board", BOARDS)
def test_a_board_has_units_descriptions_and_a_place_for_each_panel(board: str) -> None:
    content = BOARDS[board]
    panels = [panel for panel in content["panels"] if panel["type"] != "row"]
    ids = [panel["id"] for panel in content["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels:
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
    assert not _overlapping([panel["gridPos"] for panel in content["panels"]])


def _overlapping(places: list[dict[str, int]]) -> list[tuple[int, int]]:
    taken: set[tuple[int, int]] = set()
    twice: list[tuple[int, int]] = []
    for place in places:
        cells = {
            (column, line)
            for column in range(place["x"], place["x"] + place["w"])
            for line in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        twice += cells & taken
        taken |= cells
    return twice


def test_links_lead_to_boards_and_headings_that_there_are() -> None:
    uids = {content["uid"] for content in BOARDS.values()}
    document = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)", document, re.MULTILINE)
    }
    for url in set(_urls(BOARDS)):
        if url.startswith("/d/"):
            assert url.removeprefix("/d/").partition("?")[0] in uids
        else:
            page, _, heading = url.partition("#")
            assert page.endswith("/docs/operations.md")
            assert not heading or heading in headings


def _urls(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        for key, value in content.items():
            if key == "url":
                yield value
            else:
                yield from _urls(value)
    elif isinstance(content, list):
        for value in content:
            yield from _urls(value)


def test_grafana_is_provisioned_with_what_there_is() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "trivec.yml").read_text())["providers"]
    assert source["type"] == "prometheus"
    assert provider["type"] == "file"
