"""The evaluation report: exact counts of everything, a bounded sample of examples, three files."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.evaluation.bootstrap import bootstrap_intervals
from pipelines.evaluation.examples import Reservoir
from pipelines.evaluation.matching import CORRECT, match_spans
from pipelines.evaluation.metrics import Counts, Scored, Seen, Tallies, add_tallies, count_record, scores
from pipelines.evaluation.reliability import Reliability
from pipelines.evaluation.rendering import render_html, render_markdown
from pipelines.ner.files import write_text

SEED = 0
"""Of the examples and of the bootstrap."""


class EvaluationReport:
    """Scored records, accumulated. Reports of blocks or workers merge into the report of all, examples included."""

    def __init__(
        self,
        seen: Seen | None = None,
        *,
        num_erroneous: int = 200,
        num_correct: int = 30,
        num_samples: int = 1000,
    ) -> None:
        """Start empty.

        Args:
            seen: `(mention, label)` → whether training saw it; asked in `add` only.
            num_erroneous: how many records with errors are kept to be shown.
            num_correct: how many records with mentions and without errors are kept.
            num_samples: of the bootstrap.
        """
        self.seen, self.num_samples = seen, num_samples
        self.counts = Counts()
        self.documents: dict[str, Tallies] = {}
        """`doc_id` → tallies, for the bootstrap."""
        self.reliability = Reliability()
        self.comparison: Mapping[str, Any] | None = None
        """With another model (`compare`), if there is one; it does not merge."""
        self.erroneous, self.correct = Reservoir(num_erroneous, SEED), Reservoir(num_correct, SEED)

    def add(self, scored: Scored) -> None:
        """Count a record; it may become an example."""
        matches = match_spans(scored.gold, scored.predicted)
        counts = count_record(scored, self.seen, matches)
        self.counts += counts
        self.reliability.add(scored)
        add_tallies(self.documents.setdefault(scored.doc_id, {}), counts.labels)
        if any(match.kind != CORRECT for match in matches):
            self.erroneous.add(scored)
        elif matches:
            self.correct.add(scored)

    def add_rows(self, rows: Iterable[Mapping[str, Any]], scheme: str) -> None:
        """Count predicted records given as rows (`Scored.from_row`), with tags in `scheme`."""
        for row in rows:
            self.add(Scored.from_row(row, scheme))

    def merge(self, other: "EvaluationReport") -> None:
        """Add everything that another report holds."""
        self.counts += other.counts
        self.reliability.merge(other.reliability)
        for doc_id, tallies in other.documents.items():
            add_tallies(self.documents.setdefault(doc_id, {}), tallies)
        self.erroneous.merge(other.erroneous)
        self.correct.merge(other.correct)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: `strict.micro.f1`, `lenient.labels.PER.recall`, `intervals.strict.micro.f1`, …"""
        counts = self.counts
        return {
            "num_documents": len(self.documents),
            "num_records": counts.num_records,
            "num_gold": counts.num_gold,
            "num_gold_strict": counts.num_gold_strict,
            "num_predicted": counts.num_predicted,
            **scores(counts),
            "intervals": bootstrap_intervals(self.documents, self.num_samples, SEED),
            "calibration": self.reliability.to_dict(counts.num_gold_strict),
            "comparison": self.comparison,
            "bootstrap": {"num_samples": self.num_samples, "seed": SEED},
            "examples": {
                "num_erroneous_records": self.erroneous.total,
                "num_erroneous_shown": len(self.erroneous),
                "num_correct_records": self.correct.total,
                "num_correct_shown": len(self.correct),
            },
        }

    def write(
        self,
        output_dir: str | Path,
        title: str,
        facts: Mapping[str, Any],
        sections: Sequence[tuple[str, str]] = (),
    ) -> dict[str, Path]:
        """Write `report.json`, `report.md` and `report.html`, each whole or not at all; return their paths by name.

        Args:
            output_dir: made if it is not there.
            title: heading of the report.
            facts: what was evaluated: name → value, or group → name → value.
            sections: (title, HTML) of further parts of the page. Our own HTML only: it is inserted as it is.
        """
        result = self.to_dict()
        examples = [*self.erroneous.get_records(), *self.correct.get_records()]
        plain = json.dumps({"title": title, "facts": facts, **result}, ensure_ascii=False, indent=2, default=str)
        contents = {
            "report.json": plain + "\n",
            "report.md": render_markdown(result, title, facts),
            "report.html": render_html(result, title, facts, examples, sections),
        }
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_text(folder / name, content, errors="replace")
        return {name: folder / name for name in contents}
