"""How schemathesis sends a stream's lines: as the text that they are; and which labels it asks for: the model's."""

from typing import Any

import schemathesis

MEDIA_TYPE = "application/x-ndjson"
LABELS = ("LOC", "MISC", "ORG", "PER")
"""Of the model that is asked. The document does not name them, as each model has others."""


@schemathesis.serializer(MEDIA_TYPE)
def serialize_lines(ctx: schemathesis.SerializationContext, value: Any) -> bytes:
    """The lines in UTF-8."""
    return str(value).encode("utf-8", "surrogatepass")


@schemathesis.hook
def filter_case(ctx: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Whatever is sent as lines is a string: there is no body of another type."""
    return case.media_type != MEDIA_TYPE or isinstance(case.body, str)


@schemathesis.hook
def map_body(ctx: schemathesis.HookContext, body: Any) -> Any:
    """Strings in the place of labels become labels."""
    if isinstance(body, dict) and isinstance(body.get("labels"), list):
        labels = [LABELS[len(one) % len(LABELS)] if isinstance(one, str) else one for one in body["labels"]]
        return {**body, "labels": labels}
    return body
