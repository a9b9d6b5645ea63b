"""How schemathesis sends a stream's lines: as the text that they are; and which labels it asks for: the model's."""

from typing import Any

import schemathesis

from serve.schemas import MAX_NAME

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
    """Strings that could be labels become labels; others are wrong on purpose."""
    if isinstance(body, dict) and isinstance(body.get("labels"), list):
        return {**body, "labels": [_choose(one) if _may_be_label(one) else one for one in body["labels"]]}
    return body


def _may_be_label(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME


def _choose(value: str) -> str:
    return LABELS[len(value) % len(LABELS)]
