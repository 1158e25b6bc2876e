"""A progress bar, if one is wanted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trivec_client.errors import MissingExtraError

Advance = Callable[[int], object]
"""Moves a progress bar on by a number of texts."""


@contextmanager
def progress_bar(*, shown: bool, total: int | None) -> Iterator[Advance]:
    """
    A bar on standard error that counts texts, out of `total` where it is known.

    Raises:
        MissingExtraError: a bar is to be shown and tqdm is not installed.
    """
    if not shown:
        yield lambda _texts: None
        return
    try:
        from tqdm import tqdm  # noqa: PLC0415 - an extra, loaded when asked for
    except ImportError:
        raise MissingExtraError.of("the progress bar", "tqdm", "progress") from None
    with tqdm(total=total, unit=" texts", smoothing=0.1) as bar:
        yield bar.update


def known_length(sentences: object) -> int | None:
    """The number of texts, where the iterable knows it."""
    return len(sentences) if hasattr(sentences, "__len__") else None
