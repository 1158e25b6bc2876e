"""
A small retrieval set in Chinese, English, German and Spanish, written for the tests.

Passages come in pairs on neighbouring subjects, so that each right passage has a near miss in its own language. No
subject is in two languages, so that a query has exactly one right passage, also across languages.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class RetrievalQuery:
    """A query, its language, and the key of the one passage that answers it (the key begins with its language)."""

    language: str
    text: str
    passage: str

    @property
    def crosses_languages(self) -> bool:
        """Whether query and passage are in different languages."""
        return not self.passage.startswith(self.language)


_DATA = json.loads(Path(__file__).with_name("data").joinpath("retrieval.json").read_text(encoding="utf-8"))

PASSAGES: Mapping[str, str] = MappingProxyType(_DATA["passages"])
"""Key to passage; eighteen for each language."""

QUERIES = tuple(RetrievalQuery(**query) for query in _DATA["queries"])
"""Seven queries for each language in the language of their passage, then twelve that cross languages."""
