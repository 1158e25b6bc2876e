"""How a client reaches its servers: where they are, what secures the way, which of them gets a call."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import grpc
import grpc.aio

from trivec_client.balancing import BALANCINGS, CLUSTER_OPTIONS, SENDS_PER_TRY, SERVICE_NAME, Balancing, service_config
from trivec_client.channel import ChannelOption, Metadata, Tls, channel_credentials, channel_options
from trivec_client.jobs import Rpc
from trivec_client.requests import pick
from trivec_client.retry import RetryPolicy
from trivec_client.targets import Targets


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """
    All that a channel is made from; what callers give is described at `TrivecClient.__init__`.

    Attributes:
        balancing: None: one server, or several of which gRPC takes one.
        health_service: what the servers must say SERVING of, where there is balancing.
    """

    targets: Targets
    balancing: Balancing | None
    health_service: str
    credentials: grpc.ChannelCredentials | None
    options: tuple[ChannelOption, ...]
    metadata: tuple[tuple[str, str], ...] = field(repr=False)

    @classmethod
    def prepare(
        cls,
        *,
        target: str | Sequence[str],
        balancing: Balancing | None,
        health_service: str,
        retry: RetryPolicy,
        metadata: Metadata,
        token: str | None,
        allow_insecure_token: bool,
        tls: Tls | None,
        credentials: grpc.ChannelCredentials | None,
        options: Sequence[ChannelOption],
    ) -> Self:
        """
        Checks what a caller gives.

        Raises:
            OSError: a file that `tls` names is not readable.
            ValueError: something cannot be right, or would send a token in plain text.
        """
        targets = Targets.parse(target)
        if balancing is None and targets.may_be_several:
            balancing = "round_robin"
        secured = channel_credentials(tls, credentials)
        if token is not None and secured is None and not targets.is_local and not allow_insecure_token:
            raise ValueError(
                f"token: it would travel to {targets} in plain text, for all on the way to read; use TLS, or, where "
                "the network is trusted, allow_insecure_token (--allow-insecure-token)"
            )
        made = channel_options(tls)
        if len(targets.names) > 1:
            made += _names_for_many(targets, secured, (*made, *options))
        if balancing is not None:
            pick("balancing", BALANCINGS, balancing)
            made += [*CLUSTER_OPTIONS, ("grpc.service_config", service_config(balancing, health_service, retry))]
        return cls(
            targets=targets,
            balancing=balancing,
            health_service=health_service,
            credentials=secured,
            options=_once_each((*made, *options)),
            metadata=(*metadata, *_authorization(token, metadata)),
        )

    def open(self) -> grpc.Channel:
        """
        A blocking channel.

        Raises:
            OSError: a host in a list of targets is not known.
        """
        where = self.targets.resolve()
        if self.credentials is not None:
            return grpc.secure_channel(where, self.credentials, self.options)
        return grpc.insecure_channel(where, self.options)

    def open_asyncio(self) -> grpc.aio.Channel:
        """
        A channel of the event loop that runs.

        Raises:
            OSError: a host in a list of targets is not known.
        """
        where = self.targets.resolve()
        if self.credentials is not None:
            return grpc.aio.secure_channel(where, self.credentials, self.options)
        return grpc.aio.insecure_channel(where, self.options)

    def sends_per_try(self, rpc: Rpc, retry: RetryPolicy) -> int:
        """How often gRPC itself sends a call, at most, before it reports UNAVAILABLE."""
        by_grpc = self.balancing is not None and rpc is not Rpc.EMBED_STREAM and retry.max_attempts > 1
        return SENDS_PER_TRY if by_grpc else 1


_NAMING_OPTIONS = ("grpc.ssl_target_name_override", "grpc.default_authority")


def health_name(model: str, model_version: int) -> str:
    """What the servers' health must say SERVING of: the model that a client calls, else the service."""
    if model and model_version:
        return f"{model}/{model_version}"
    return model or SERVICE_NAME


def _once_each(options: Sequence[ChannelOption]) -> tuple[ChannelOption, ...]:
    """Of options with one name the last: gRPC itself would take the first."""
    return tuple(dict(options).items())


def _names_for_many(
    targets: Targets, credentials: grpc.ChannelCredentials | None, options: Sequence[ChannelOption]
) -> list[ChannelOption]:
    """
    The name that requests bear, and certificates must: a list of addresses has none of its own.

    Raises:
        ValueError: it is needed for TLS and not known.
    """
    if any(name in _NAMING_OPTIONS for name, _ in options):
        return []
    if credentials is not None and targets.host is None:
        raise ValueError(
            "target: several hosts with TLS need the name that all their certificates bear: Tls(server_name=...)"
        )
    return [("grpc.default_authority", targets.host or targets.names[0])]


def _authorization(token: str | None, metadata: Metadata) -> Metadata:
    if token is None:
        return ()
    if any(key.lower() == "authorization" for key, _ in metadata):
        raise ValueError("token: metadata has an authorization already; give one of the two")
    if not token.isascii() or not token.isprintable() or " " in token or not token:
        raise ValueError("token: it is empty, or has characters that no token has, such as spaces or line breaks")
    return (("authorization", f"Bearer {token}"),)
