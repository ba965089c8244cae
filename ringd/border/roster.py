"""The programs that hold a lifeline, and which connections were theirs."""

from __future__ import annotations

from collections import OrderedDict

from ringd.border.client import Client

REMEMBERED = 1024
"""Tokens and routing ids of former clients."""


class Roster:
    """Clients by the token of their lifeline, and by the routing id of their ZeroMQ connection.

    Those that were seen off last are remembered: some of what they sent may be read later than
    their end, which comes another way.
    """

    def __init__(self) -> None:
        self._by_token: dict[bytes, Client] = {}
        self._by_routing_id: dict[bytes, Client] = {}
        self._former: OrderedDict[bytes, None] = OrderedDict()
        """Tokens and routing ids."""

    def __len__(self) -> int:
        return len(self._by_token)

    @property
    def attached(self) -> list[Client]:
        """Those that have attached."""
        return list(self._by_routing_id.values())

    def holder(self, token: bytes) -> Client | None:
        """Return the client whose lifeline has that token."""
        return self._by_token.get(token)

    def behind(self, routing_id: bytes) -> Client | None:
        """Return the client that has attached over that ZeroMQ connection."""
        return self._by_routing_id.get(routing_id)

    def knew(self, name: bytes) -> bool:
        """Whether that was the token, or the routing id, of a client that is gone."""
        return name in self._former

    def add(self, client: Client) -> None:
        """It has a lifeline."""
        self._by_token[client.token] = client

    def attach(self, client: Client, routing_id: bytes) -> None:
        """It has attached over that ZeroMQ connection, be it another one than before."""
        if client.routing_id is not None:
            self._by_routing_id.pop(client.routing_id, None)
        self._former.pop(routing_id, None)
        client.routing_id = routing_id
        self._by_routing_id[routing_id] = client

    def remove(self, client: Client) -> None:
        """It is gone."""
        self._by_token.pop(client.token, None)
        self.remember(client.token)
        if client.routing_id is not None:
            self._by_routing_id.pop(client.routing_id, None)
            self.remember(client.routing_id)

    def remember(self, name: bytes) -> None:
        """Take that for the token, or the routing id, of one that is gone."""
        self._former.pop(name, None)  # to be the last again
        self._former[name] = None
        if len(self._former) > REMEMBERED:
            self._former.popitem(last=False)

    def clear(self) -> list[Client]:
        """Forget all; return those that had a lifeline."""
        clients = list(self._by_token.values())
        self._by_token.clear()
        self._by_routing_id.clear()
        return clients
