"""Serves the page on which people label episodes, on this machine only."""

import json
import re
import struct
import sys
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from robot_qsft.datasets.labels import Labels
from robot_qsft.datasets.source import EpisodeSource
from robot_qsft.label_reader import Unavailable
from robot_qsft.label_session import LabelSession

_ADDRESS: Final = "127.0.0.1"
_OWN_HOSTS: Final = re.compile(r"(127\.0\.0\.1|localhost)(:[0-9]{1,5})?")
_ASSETS: Final = {
    "/": ("label.html", "text/html; charset=utf-8"),
    "/label.css": ("label.css", "text/css; charset=utf-8"),
    "/label.js": ("label.js", "text/javascript; charset=utf-8"),
}
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_LARGEST_BODY = 4096
_FRAMES_PER_STRIP = 32
_IDLE_S = 60


def serve_labels(
    source: EpisodeSource,
    *,
    labels_file: Path,
    port: int,
    by: str,
    ready: Callable[[str], None] = print,
) -> None:
    """Serve the page until the process is interrupted.

    Args:
        source: to be labelled.
        labels_file: the sidecar, see `labels_path`.
        port: to listen on; 0 for any that is free.
        by: who labels, kept with each label.
        ready: called with the page's address once it can be opened.

    Raises:
        ValueError: when there is no episode, the labels are damaged or in use, or the port is.
    """
    if len(source) == 0:
        raise ValueError(f"expected episodes to label in {source.path}, but it has none")
    with (
        Labels.edit(labels_file, episodes=len(source)) as labels,
        _bind(port) as server,
        LabelSession(source, labels=labels, by=by) as session,
    ):
        server.session = session
        ready(f"http://{_ADDRESS}:{server.server_port}/")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


class _Refused(Exception):  # noqa: N818 - an answer, not a fault of ours
    """A request that is answered with a sentence and this status."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    session: LabelSession

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that was closed half-way through an answer is nothing to report."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_S
    server: _Server

    def do_GET(self) -> None:
        """Answer a request that changes nothing."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Answer a request that may change a label."""
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""

    def end_headers(self) -> None:
        """Every answer carries the rules that bind the browser."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def _answer(self, handle: Callable[[], tuple[str, bytes]]) -> None:
        status = HTTPStatus.OK
        try:
            self._check_origin()
            kind, content = handle()
        except _Refused as refused:
            status, (kind, content) = refused.status, _json({"error": str(refused)})
        except Unavailable as error:
            status, (kind, content) = HTTPStatus.SERVICE_UNAVAILABLE, _json({"error": str(error)})
        except ValueError as error:
            status, (kind, content) = HTTPStatus.CONFLICT, _json({"error": str(error)})
        if status is not HTTPStatus.OK:
            self.close_connection = True  # a body that was not read would pass for a request
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def _check_origin(self) -> None:
        """Refuse other pages, be it that they ask or that their name was led to this machine."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not _OWN_HOSTS.fullmatch(hosts[0]):
            raise _Refused(
                HTTPStatus.FORBIDDEN,
                f"this page is served as {_ADDRESS} or localhost only; open it by that name",
            )
        foreign = any(
            origin != f"http://{hosts[0]}" for origin in self.headers.get_all("Origin", [])
        )
        # A link elsewhere may lead to the page, but only the page itself may ask further.
        site = self.headers.get("Sec-Fetch-Site", "none")
        if foreign or (self.path.startswith("/api/") and site not in ("none", "same-origin")):
            raise _Refused(HTTPStatus.FORBIDDEN, "another page asked, which may not; use this one")

    def _get(self) -> tuple[str, bytes]:
        address = urlsplit(self.path)
        query = {
            name: values[-1] for name, values in parse_qs(address.query, max_num_fields=8).items()
        }
        if address.path in _ASSETS:
            file, kind = _ASSETS[address.path]
            return kind, (Path(__file__).parent / file).read_bytes()
        if address.path == "/favicon.ico":
            return "image/x-icon", b""
        session = self.server.session
        if address.path == "/api/source":
            return _json(session.about())
        if address.path == "/api/episodes":
            return _json(session.rows(_whole(query, "since")))
        if address.path == "/api/episode":
            return _json(session.row(self._episode(_whole(query, "episode"))))
        if address.path == "/api/frames":
            return "application/octet-stream", self._frames(query)
        raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page; open /")

    def _frames(self, query: Mapping[str, str]) -> bytes:
        """JPEGs one after another, each after its length in bytes, big-endian uint32."""
        session = self.server.session
        camera = query.get("camera", "")
        if camera not in session.source.info.cameras:
            raise _Refused(HTTPStatus.NOT_FOUND, "the source has no such camera; choose another")
        jpegs = session.reader.strip(
            self._episode(_whole(query, "episode")),
            camera=camera,
            first=_whole(query, "first"),
            count=_FRAMES_PER_STRIP,
            ahead=query.get("ahead") == "1",
        )
        return b"".join(struct.pack(">I", len(jpeg)) + jpeg for jpeg in jpegs)

    def _post(self) -> tuple[str, bytes]:
        if self.path != "/api/label":
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page; post to /api/label")
        body = self._body()
        session = self.server.session
        if body == {"action": "undo"}:
            return _json(session.undo())
        if body.keys() != {"action", "episode", "outcome", "success_frame"}:
            raise _Refused(
                HTTPStatus.BAD_REQUEST, "expected the fields of a label; reload the page"
            )
        episode = body["episode"]
        if body["action"] != "set" or type(episode) is not int:
            raise _Refused(HTTPStatus.BAD_REQUEST, "expected 'set' and a number; reload the page")
        return _json(
            session.set(
                self._episode(episode),
                outcome=body["outcome"],
                success_frame=body["success_frame"],
            )
        )

    def _body(self) -> dict[str, Any]:
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected JSON; reload the page")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,9}", length) or "Transfer-Encoding" in self.headers:
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "expected a length; reload the page")
        if int(length) > _LARGEST_BODY:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "that is no label; reload the page")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise _Refused(HTTPStatus.BAD_REQUEST, "expected a JSON object; reload the page")
        return body

    def _episode(self, number: int) -> int:
        if not 0 <= number < len(self.server.session.source):
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no such episode; reload the page")
        return number


def _bind(port: int) -> _Server:
    """A server on a port of this machine.

    Raises:
        ValueError: when the port cannot be had.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port should be from 0 to 65535, but {port} came; choose another")
    try:
        return _Server((_ADDRESS, port), _Handler)
    except OSError as error:
        raise ValueError(
            f"port {port} of {_ADDRESS} cannot be had ({error.strerror}); end what uses it, or "
            "choose another with --port"
        ) from error


def _json(content: Any) -> tuple[str, bytes]:
    return "application/json", json.dumps(content).encode()


def _whole(query: Mapping[str, str], name: str) -> int:
    text = query.get(name, "")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise _Refused(HTTPStatus.BAD_REQUEST, f"expected a number as {name!r}; reload the page")
    return int(text)
