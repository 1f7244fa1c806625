"""Three ways to reach a bench: HTTP, a Serve handle, the sequential runner. One set of methods."""

from wtb_core.clients.contract import Client
from wtb_core.clients.handle import HandleClient
from wtb_core.clients.http import HttpClient
from wtb_core.clients.local import LocalClient

__all__ = ["Client", "HandleClient", "HttpClient", "LocalClient"]
