"""Files written whole or not at all: who reads one meanwhile, or after a crash, finds what was there before."""

from pathlib import Path


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write a file in UTF-8, whole or not at all.

    Args:
        errors: `replace`, where a text may hold what UTF-8 cannot say.
    """
    staging = path.with_name(f".{path.name}.partial")
    try:
        staging.write_text(text, encoding="utf-8", errors=errors)
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
