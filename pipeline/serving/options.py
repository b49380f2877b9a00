"""ServeOptions: the settings of `rdmpipe browse`. Reads and writes nothing."""

from __future__ import annotations

import ipaddress
import re
import secrets
from dataclasses import dataclass, replace

from pipeline.errors import ConfigError

PORT = 8420

LOOPBACK = ("127.0.0.1", "localhost", "::1")

LEAST_TOKEN = 16  # characters


@dataclass(frozen=True)
class ServeOptions:
    """Settings of one server.

    database        the database that is shown first; the page also offers the others of the home
    host, port      the address to listen on; any host except a loopback address needs a token
    token           required in every request; empty: not required
    allow_generate  whether the page may draw pictures and store favourites; without it, nothing is written
    allow_origins   other sites whose scripts may use the API (CORS), such as https://example.org
    """

    database: str = ""
    home: str | None = None
    host: str = "127.0.0.1"
    port: int = PORT
    token: str = ""
    allow_generate: bool = False
    allow_origins: tuple[str, ...] = ()
    device: str = "auto"
    threads: int = 0

    @property
    def is_loopback(self) -> bool:
        return self.host in LOOPBACK

    @property
    def address(self) -> str:
        """The URL for a browser on this machine."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", *LOOPBACK) else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def checked(self) -> ServeOptions:
        """These options, with a token if they need one. Raises ConfigError."""
        if not 0 < self.port < 65536:
            raise ConfigError(f"--port {self.port}: expected a number from 1 to 65535")
        for origin in self.allow_origins:
            if not re.fullmatch(r"https?://[A-Za-z0-9.\-\[\]:]+", origin):
                raise ConfigError(
                    f"--allow-origin {origin!r}: expected scheme and host, such as https://example.org; `*` is not accepted, "
                    "because every site could then read the databases"
                )
        if self.token and len(self.token) < LEAST_TOKEN:
            raise ConfigError(
                f"the token has {len(self.token)} characters; use at least {LEAST_TOKEN}, or leave it out: one is made"
            )
        if self.is_loopback or self.token:
            return self
        return replace(self, token=secrets.token_urlsafe(24))

    def is_own_host(self, header: str) -> bool:
        """Whether a Host header names this server.

        A page of another site whose name was made to resolve to this machine sends that site's name, and is refused. If the
        server listens on all interfaces, any IP address is accepted, because an IP address cannot be made to resolve to
        another.
        """
        name, _, port = header.rpartition(":") if re.search(r":\d+$", header) else (header, "", "")
        bare = name.strip("[]").lower()
        if port and port != str(self.port):
            return False
        if bare in LOOPBACK or bare == self.host.lower():
            return True
        if self.host not in ("0.0.0.0", "::"):
            return False
        try:
            ipaddress.ip_address(bare)
        except ValueError:
            return False
        return True
