"""A text with its entities replaced, and where the replacements stand."""

import hashlib
import hmac
from collections.abc import Sequence

from pipelines.ner.entities import Entity
from serve.schemas import Redacted, RedactedSpan, Redaction

MASK = "█"
HASH_CHARACTERS = 10


def redact(text: str, entities: Sequence[Entity], kind: Redaction, key: bytes) -> Redacted:
    """Replace entities, which are in order and disjoint; what is between them stays as it is.

    Args:
        key: of the hash (HMAC-SHA-256 of label and mention), without which nobody can tell what was there by trying.
    """
    parts: list[str] = []
    spans: list[RedactedSpan] = []
    read = written = 0
    for entity in entities:
        replacement = _replace(entity, kind, key)
        between = text[read : entity.start]
        start = written + len(between)
        written = start + len(replacement)
        parts += [between, replacement]
        spans.append(RedactedSpan(start=start, end=written, label=entity.label))
        read = entity.end
    return Redacted(text="".join([*parts, text[read:]]), spans=spans)


def _replace(entity: Entity, kind: Redaction, key: bytes) -> str:
    if kind == "mask":
        return MASK * (entity.end - entity.start)
    if kind == "label":
        return f"[{entity.label}]"
    digest = hmac.new(key, f"{entity.label}\0{entity.text}".encode(), hashlib.sha256)
    return f"[{entity.label}:{digest.hexdigest()[:HASH_CHARACTERS]}]"
