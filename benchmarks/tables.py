"""Tables of README.md that are rendered from results files."""

from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def put_table(page: str, table: str, name: str) -> str:
    """The page with the table between the marks of this name."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, _, rest = page.partition(begin)
    return f"{before}{begin}{table}\n{end}{rest.partition(end)[2]}"
