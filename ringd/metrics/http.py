"""As much of HTTP as a scraper and a probe need: one GET, one answer, and the end."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

MAX_HEAD = 8192
"""Bytes of a request's head."""

_WORDS = 3  # of a request line


class BadRequest(ValueError):
    """No request that is served here; *status* says why."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


@dataclass(frozen=True, slots=True)
class Response:
    """What is answered."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"

    def pack(self, *, body: bool = True) -> bytes:
        """Return the bytes to send, without the *body* for a HEAD."""
        allow = "Allow: GET, HEAD\r\n" if self.status is HTTPStatus.METHOD_NOT_ALLOWED else ""
        head = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\n"
            f"Content-Type: {self.content_type}\r\n"
            f"Content-Length: {len(self.body)}\r\n"
            f"{allow}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (self.body if body else b"")


def plain(status: HTTPStatus, text: str = "") -> Response:
    """Return an answer of one line, by default what *status* means."""
    return Response(status, f"{text or status.phrase}\n".encode())


def parse(data: bytes) -> tuple[str, str] | None:
    """Return method (GET or HEAD) and path of the request that *data* begins with.

    None while its head is not complete. Header fields are of no interest.

    Raises:
        BadRequest: It is none that is served here.
    """
    if b"\r\n\r\n" not in data and b"\n\n" not in data:
        if len(data) >= MAX_HEAD:
            raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        return None
    words = data.split(b"\n", 1)[0].split()
    if len(words) != _WORDS or not words[2].startswith(b"HTTP/1.") or not words[1].isascii():
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    method, target = words[0], words[1].decode()
    if method not in {b"GET", b"HEAD"}:
        raise BadRequest(HTTPStatus.METHOD_NOT_ALLOWED)
    return method.decode(), target.partition("?")[0]
