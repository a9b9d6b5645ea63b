"""What all reports share: their templates, and tables as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

EN_DASH = "\N{EN DASH}"
"""Stands for what there is not."""

Table = tuple[str, list[str], list[list[str]]]
"""Title, names of the columns, rows; the first cell of each is its name."""


def build_environment(module: str = __file__, **more: Any) -> Environment:
    """What finds the templates beside a module, given by its `__file__`, and those that lie here."""
    folders = [Path(module).parent, Path(__file__).parent]
    return Environment(
        loader=FileSystemLoader(folders), autoescape=True, undefined=StrictUndefined, trim_blocks=True, **more
    )


def render_markdown_tables(tables: Iterable[Table]) -> list[str]:
    """Each below its title."""
    return [part for title, header, rows in tables for part in (f"## {title}", render_markdown_table(header, rows))]


def render_markdown_facts(facts: Mapping[str, Any]) -> str:
    """A table of names and values."""
    return render_markdown_table(["", ""], [[name, str(value)] for name, value in facts.items()], num_text=2)


def render_markdown_table(header: Sequence[str], body: Sequence[Sequence[str]], num_text: int = 1) -> str:
    """A table whose first `num_text` columns are text, and the others numbers."""
    rule = ["---"] * num_text + ["---:"] * (len(header) - num_text)
    lines = [[flatten(cell).replace("|", "\\|") for cell in row] for row in (header, *body)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (lines[0], rule, *lines[1:]))


def flatten(text: str) -> str:
    """In one line."""
    return " ".join(text.split())
