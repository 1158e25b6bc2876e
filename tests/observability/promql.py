"""The names of metrics in PromQL."""

import re

_NAME = re.compile(
    r"(?<![\w:$\"/-])((?:trivec|nv|process|probe|python)_\w+|up|ALERTS|job(?:_\w+)?:[\w:]+|trivec:[\w:]+)(?![\w:(\"])"
)
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')


def metric_names(promql: str) -> set[str]:
    """What a query reads, recorded series among them."""
    return set(_NAME.findall(_STRINGS.sub('""', promql)))
