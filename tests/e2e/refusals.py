"""How a door refuses a user's mistake."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """The exit code of a door that was expected to refuse, and what it wrote."""

    code: int
    out: str
    err: str

    def lacks(self, *facts: str) -> list[str]:
        """What is missing of a user's mistake told in full, with these facts; if anything, all that it says as well."""
        rules = {
            f"exit code 2, not {self.code}": self.code == 2,
            "nothing on stdout": not self.out,
            "no traceback": "Traceback" not in self.err,
            "no word of a failure": "failed:" not in self.err,
            **{f"{fact!r}": fact in self.err for fact in facts},
        }
        missing = [rule for rule, holds in rules.items() if not holds]
        return [*missing, self.err] if missing else []
