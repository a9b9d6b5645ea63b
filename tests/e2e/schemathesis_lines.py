"""How schemathesis sends a stream's lines: as the text that they are."""

from typing import Any

import schemathesis

MEDIA_TYPE = "application/x-ndjson"


@schemathesis.serializer(MEDIA_TYPE)
def serialize_lines(ctx: schemathesis.SerializationContext, value: Any) -> bytes:
    """The lines in UTF-8."""
    return str(value).encode("utf-8", "surrogatepass")


@schemathesis.hook
def filter_case(ctx: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Whatever is sent as lines is a string: there is no body of another type."""
    return case.media_type != MEDIA_TYPE or isinstance(case.body, str)
