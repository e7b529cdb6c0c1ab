"""HTTP to hosts that the user names: GET alone, no redirects, no other host, limits on time and size.

A request tells its host whatever stands in its address, so that it counts as an act and needs permission.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack

from quatrain.agents.tool import Tool, ToolError, tool
from quatrain.agents.toolbox import ToolSpec
from quatrain.core.errors import InputError
from quatrain.core.offline import offline

SECONDS = 20.0
MAX_BYTES = 500_000
"""The most bytes of an answer that are read."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would lead to a host that nobody named."""

    def redirect_request(self, *_: object) -> None:
        return None


def build(value: str, stack: ExitStack) -> list[Tool]:
    """A tool that fetches pages of the hosts in `value`, separated by commas. Raises InputError for what is no host."""
    hosts = {each.strip().lower() for each in value.split(",") if each.strip()}
    wrong = sorted(each for each in hosts if "/" in each or "*" in each or " " in each)
    if wrong or not hosts:
        raise InputError(f"http: {', '.join(wrong) or 'nothing'}; give hosts such as example.com or localhost:8000")
    opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))

    def fetch(url: str) -> str:
        """Fetch a page by HTTP.

        url: an address of an allowed host, such as https://example.com/page
        """
        parts = urllib.parse.urlsplit(url)
        host = (parts.hostname or "").lower()
        try:
            named = {host} if parts.port is None else {f"{host}:{parts.port}"}
        except ValueError as error:
            raise ToolError(f"url: {error}") from None
        if parts.scheme not in ("http", "https") or not named & hosts or parts.username:
            raise ToolError(f"url: {url!r} is of no allowed host; these are {', '.join(sorted(hosts))}")
        if offline() and host not in ("localhost", "127.0.0.1", "::1"):
            raise ToolError("url: QUATRAIN_OFFLINE forbids the network")
        try:
            with opener.open(urllib.request.Request(url, headers={"User-Agent": "quatrain"}), timeout=SECONDS) as page:
                content = page.read(MAX_BYTES + 1)
        except urllib.error.HTTPError as error:
            raise ToolError(f"the host answers with status {error.code}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ToolError(f"the host cannot be reached: {error}") from None
        return str(content[:MAX_BYTES].decode("utf-8", "replace"))

    return [
        tool(
            fetch,
            description=f"Fetch a page by HTTP. Allowed hosts: {', '.join(sorted(hosts))}.",
            effect="act",
            untrusted=True,
            seconds=SECONDS + 10,
        )
    ]


SPEC = ToolSpec("http", build, "GET from hosts that you name", "hosts, separated by commas")
