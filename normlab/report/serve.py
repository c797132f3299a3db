"""`normlab serve`: a page that shows a study while it runs. It only reads.

The server listens on this machine alone unless another address is given, and then asks for a token. It serves requests
only if they name this server (the Host header, against DNS rebinding) and come from its own page (Origin).
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qs

import typer

from normlab.errors import NormlabError, UsageError
from normlab.study.plain import escaped

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

POLL_SECONDS = 0.5
HEARTBEAT_SECONDS = 10.0
COOKIE = "normlab_token"
TOKEN_LENGTH = 16
PATHS = ("/", "/library.js", "/state", "/figures", "/events")

_Receive = Callable[[], Awaitable[Any]]
_Send = Callable[[Any], Awaitable[None]]


def serve(
    directory: Annotated[Path, typer.Argument(help="The --out directory of `normlab compare`.")],
    host: Annotated[str, typer.Option(help="Address to listen on; another than this machine's needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8765,
    token: Annotated[
        str, typer.Option(help="The secret in the page's address; 16 characters or more; made up where one is needed.")
    ] = "",
    study: Annotated[
        int | None,
        typer.Option(min=1, help="Of several, by its number in `normlab status`.", show_default="the last begun"),
    ] = None,
) -> None:
    """Watch a comparison in the browser while it runs."""
    import socket

    import uvicorn

    if not is_local(host) and not token:
        token = secrets.token_urlsafe(16)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --port or --host"
        ) from None
    port = listener.getsockname()[1]
    app = application(directory, host, port, token, study)
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{port}/" + (f"?token={token}" if token else "")

    class Announced(uvicorn.Server):
        """Prints its address once it listens: who opens it at once is not refused."""

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            typer.echo(address)

    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, access_log=False)
    Announced(config).run(sockets=[listener])


def application(directory: Path, host: str, port: int, token: str = "", number: int | None = None) -> Starlette:
    """The page and its data as an ASGI application for one study, of several that of `number`.

    Raises UsageError where there is no study, a token is shorter than sixteen characters, or an address that others can
    reach comes without one.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.routing import Route

    from normlab.report.live import LiveStudy

    if not is_local(host) and not token:
        raise UsageError(f"--host {host} can be reached from other machines; it needs a --token")
    if token and len(token) < TOKEN_LENGTH:
        raise UsageError(f"--token has {len(token)} characters; expected {TOKEN_LENGTH} or more, which nobody guesses")
    views = _Views(LiveStudy(directory, number))
    answers = (views.page, views.bundle, views.state, views.figures, views.events)
    routes = [Route(path, answer) for path, answer in zip(PATHS, answers, strict=True)]
    guard = Middleware(_Guard, names=None if not is_local(host) else _names(host, port), token=token)
    handlers = {NormlabError: _unreadable, OSError: _unreadable}
    return Starlette(routes=routes, middleware=[guard], exception_handlers=handlers)


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Views:
    def __init__(self, study: Any) -> None:
        self._study = study

    async def page(self, request: Request) -> Response:
        from starlette.responses import HTMLResponse

        from normlab.report.page import live_page

        norms = await asyncio.to_thread(self._study.norms)
        html, policy = live_page(self._study.directory.resolve().name, norms)
        return HTMLResponse(html, headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"})

    async def bundle(self, request: Request) -> Response:
        from starlette.responses import Response

        from normlab.report.page import library

        code = await asyncio.to_thread(library)
        return Response(code, media_type="text/javascript", headers={"Cache-Control": "max-age=86400"})

    async def state(self, request: Request) -> Response:
        page = _whole(request, "page", 0)
        if page is None:
            return _no_number("page")
        status = request.query_params.get("status", "")
        return _json(await asyncio.to_thread(self._study.state, page, status))

    async def figures(self, request: Request) -> Response:
        setting = _whole(request, "setting", -1)
        if setting is None:
            return _no_number("setting")
        return _json(await asyncio.to_thread(self._study.figures, setting))

    async def events(self, request: Request) -> Response:
        from starlette.responses import StreamingResponse

        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._changes(), media_type="text/event-stream", headers=headers)

    async def _changes(self) -> AsyncIterator[str]:
        """An event at once and after every commit; comments in between show that the connection is alive."""
        seen, silent = None, 0.0
        while True:
            mark = self._study.mark()
            if mark != seen:
                seen, silent = mark, 0.0
                yield "event: change\ndata: {}\n\n"
            elif silent >= HEARTBEAT_SECONDS:
                silent = 0.0
                yield ": still here\n\n"
            await asyncio.sleep(POLL_SECONDS)
            silent += POLL_SECONDS


class _Guard:
    """Lets through reading requests that name this server, come from its own page, and carry the token."""

    def __init__(self, app: Any, names: set[str] | None, token: str) -> None:
        self._app, self._names, self._token = app, names, token

    async def __call__(self, scope: Any, receive: _Receive, send: _Send) -> None:
        from starlette.responses import PlainTextResponse, RedirectResponse

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        answer: Response | None = None
        if scope["method"] not in ("GET", "HEAD"):
            answer = PlainTextResponse("this page only reads", 405)
        elif (self._names is not None and host not in self._names) or origin not in (None, f"http://{host}"):
            answer = PlainTextResponse("this server does not go by that name", 403)
        elif self._token:
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if given and hmac.compare_digest(given.encode(), self._token.encode()):
                # into a cookie, and out of the address, which others may see
                answer = RedirectResponse(scope["path"] if scope["path"] in PATHS else "/", 303)
                answer.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
            elif not hmac.compare_digest(_cookie(headers).encode(), self._token.encode()):
                answer = PlainTextResponse("open the address that `normlab serve` printed; it has a token", 401)
        await (answer or self._app)(scope, receive, send)


def _cookie(headers: dict[str, str]) -> str:
    from http.cookies import CookieError, SimpleCookie

    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _names(host: str, port: int) -> set[str]:
    names = {"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host}
    return {f"{name}:{port}" for name in names} | (names if port == 80 else set())


def _whole(request: Request, name: str, absent: int) -> int | None:
    """The whole number that a request gives by this name; None where it is none."""
    text = request.query_params.get(name, str(absent))
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else None


def _no_number(name: str) -> Response:
    from starlette.responses import PlainTextResponse

    return PlainTextResponse(f"{name} is no whole number", 400)


async def _unreadable(request: Request, error: Exception) -> Response:
    """What became of a store that cannot be read now: deleted, damaged, or kept busy."""
    from starlette.responses import PlainTextResponse

    return PlainTextResponse(escaped(str(error)), 503)


def _json(value: Any) -> Response:
    from starlette.responses import Response

    from normlab.errors.files import to_json

    return Response(to_json(value), media_type="application/json", headers={"Cache-Control": "no-store"})
