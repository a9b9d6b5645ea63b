"""What goes wrong with a request, as RFC 9457 tells it."""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

MEDIA_TYPE = "application/problem+json"
TITLES = {
    400: "Not JSON",
    401: "API key missing or unknown",
    404: "Not found",
    405: "Method not allowed",
    408: "Request too slow",
    413: "Request too large",
    415: "Unknown media type",
    422: "Request breaks a rule",
    429: "Too much work waiting",
    500: "Internal error",
    503: "Not ready",
    504: "Deadline passed",
}


class Problem(Exception):
    """An answer other than 200.

    Args:
        errors: single mistakes, each a JSON pointer into the body and what is wrong there.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status, self.detail, self.errors, self.headers = status, detail, list(errors), dict(headers or {})
        super().__init__(detail)

    def describe(self, request_id: str) -> dict[str, Any]:
        """The problem document."""
        document: dict[str, Any] = {
            "type": "about:blank",
            "title": TITLES.get(self.status) or HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "request_id": request_id,
        }
        if self.errors:
            document["errors"] = [{"pointer": pointer, "detail": detail} for pointer, detail in self.errors]
        return document

    def render(self, request_id: str) -> bytes:
        """The problem document as JSON."""
        return json.dumps(self.describe(request_id)).encode()
