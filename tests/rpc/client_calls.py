"""Calls either client, so that one test holds for both."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from trivec_client import AsyncTrivecClient, TrivecClient

Kind = Literal["blocking", "asyncio"]
KINDS: tuple[Kind, ...] = ("blocking", "asyncio")


class AnyClient:
    """The blocking client on a thread, or the asyncio client, with the methods of either, awaited."""

    def __init__(self, client: TrivecClient | AsyncTrivecClient) -> None:
        self.client = client

    async def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """The method's result; of `encode_stream`, the list of results."""
        function = getattr(self.client, method)
        if isinstance(self.client, TrivecClient):
            if method == "encode_stream":
                return await asyncio.to_thread(lambda: list(function(*arguments, **named)))
            return await asyncio.to_thread(function, *arguments, **named)
        if method == "encode_stream":
            return [result async for result in function(*arguments, **named)]
        return await function(*arguments, **named)


@asynccontextmanager
async def connect(kind: Kind, target: str | list[str], **settings: Any) -> AsyncIterator[AnyClient]:
    """A client of either kind, closed at the end."""
    if kind == "asyncio":
        async with AsyncTrivecClient(target, **settings) as client:
            yield AnyClient(client)
    else:
        blocking = TrivecClient(target, **settings)
        try:
            yield AnyClient(blocking)
        finally:
            await asyncio.to_thread(blocking.close)
