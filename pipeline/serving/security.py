"""Access to the server: Host, Origin, token and CSRF checks, limits on bodies, and the headers of every answer.

A browser on this machine runs pages of many sites, and each of them can send requests to 127.0.0.1. Therefore:

    Host      must name this server; otherwise a site could make its own name resolve to this machine (DNS rebinding)
    Origin    must be this server's or one of --allow-origin; Sec-Fetch-Site must not be cross-site, except for following a link
    token     if one is set, it must be in the cookie that `/?token=...` sets, or in `Authorization: Bearer ...`
    CSRF      a request that changes something must have the session's CSRF token in X-Rdmpipe-Session; only readers of this
              origin get it, from the page and from `/api/session`
    body      at most MOST_BODY bytes, counted while they arrive

Reads and writes nothing outside memory.
"""

from __future__ import annotations

import hmac
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving.options import ServeOptions

MOST_BODY = 64 << 20  # bytes; the largest body is a query picture

TOO_LARGE = f"the body has more than {MOST_BODY >> 20} MiB, the most that is read; send less"

COOKIE = "rdmpipe-token"

SESSION_HEADER = "x-rdmpipe-session"

POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """The outermost layer of the application: refuses requests that are not allowed, and adds headers to answers."""

    def __init__(self, app: ASGIApp, options: ServeOptions) -> None:
        self.app, self.options = app, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin", "")
        allowed = origin in self.options.allow_origins

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                made = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    made.setdefault(name, value)
                made["vary"] = "Origin, Cookie"
                if allowed:
                    made["access-control-allow-origin"] = origin
                    made["cross-origin-resource-policy"] = "cross-origin"
                else:
                    made.setdefault("cross-origin-resource-policy", "same-origin")
            await send(message)

        answer = self._refusal(scope, headers, origin, allowed)
        if answer is not None:
            await answer(scope, receive, guarded_send)
            return
        body = _Bounded(receive)
        try:
            await self.app(scope, body, guarded_send)
        except _TooLarge:
            too_large = refusal(413, TOO_LARGE)
            await too_large(scope, receive, guarded_send)

    def _refusal(self, scope: Scope, headers: Headers, origin: str, allowed: bool) -> Response | None:
        """The refusal of a request; None if it is allowed."""
        method = scope["method"]
        host = headers.get("host", "")
        if not self.options.is_own_host(host):
            return refusal(
                421, f"the request is for {host[:80]!r}, which is not this server: open {self.options.address}"
            )
        own = {f"http://{host}", f"https://{host}"}
        if origin and origin not in own and not allowed:
            return refusal(
                403, f"requests from {origin[:80]!r} are refused; `--allow-origin` names sites that may send them"
            )
        follows_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not (allowed or follows_link):
            return refusal(403, "requests from other sites are refused; open the address in a tab of its own")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length[:19]) > MOST_BODY:
            return refusal(413, TOO_LARGE)
        if method == "OPTIONS" and allowed:
            return Response(
                status_code=204,
                headers={
                    "access-control-allow-methods": "GET, POST",
                    "access-control-allow-headers": f"content-type, authorization, {SESSION_HEADER}",
                    "access-control-max-age": "600",
                },
            )
        if self.options.token:
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if given and method == "GET" and self._is_token(given):
                return self._signed_in(scope)
            if not self._is_token(_token_of(headers)):
                return refusal(
                    401, "this server needs its token: open the address that `rdmpipe browse` printed, or send "
                    "`Authorization: Bearer TOKEN`"
                )  # fmt: skip
        return None

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.options.token.encode())

    def _signed_in(self, scope: Scope) -> Response:
        """Set the cookie and redirect to the same URL without the token, which would stay in the browser's history."""
        rest = {k: v for k, v in parse_qs(scope["query_string"].decode("latin-1")).items() if k != "token"}
        query = urlencode(rest, doseq=True)
        answer = RedirectResponse("/" + (f"?{query}" if query else ""), 303)
        answer.set_cookie(COOKIE, self.options.token, httponly=True, samesite="strict", path="/")
        return answer


def has_session(headers: Headers, session: str) -> bool:
    """Whether a request has the session's CSRF token, which only readers of this origin can know."""
    return hmac.compare_digest(headers.get(SESSION_HEADER, "").encode(), session.encode())


def _token_of(headers: Headers) -> str:
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return token.strip()
    for part in headers.get("cookie", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value.strip('"')
    return ""


def refusal(status: int, text: str, kind: str = "Refused") -> JSONResponse:
    """An error as an answer of the API."""
    return JSONResponse({"error": text, "kind": kind}, status)


class _TooLarge(Exception):
    pass


class _Bounded:
    """A `receive` that counts the body's bytes."""

    def __init__(self, receive: Receive) -> None:
        self.receive, self.read = receive, 0

    async def __call__(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.request":
            self.read += len(message.get("body", b""))
            if self.read > MOST_BODY:
                raise _TooLarge
        return message
