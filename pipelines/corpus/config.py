"""What a user says of an annotated corpus."""

from dataclasses import dataclass, field

from pipelines.corpus.augmentation.config import AugmentationConfig
from pipelines.corpus.formats.hub import PREFIX, split_id
from pipelines.corpus.formats.options import FormatOptions
from pipelines.corpus.records import CorpusError
from pipelines.corpus.summary import SPLITS
from pipelines.ner.errors import UserError
from pipelines.ner.labels import SCHEMES


@dataclass(frozen=True)
class CorpusConfig:
    """Where the annotated corpus is, and how it is read."""

    train: list[str] = field(default_factory=list)
    """Training files: paths, globs, folders (also of `save_to_disk`), `s3://bucket/…` and the like, `hf:name:split`, or
    `sample:en-train.jsonl` from the sample corpus."""
    dev: list[str] = field(default_factory=list)
    """Files to choose the best epoch by; if none, a part of the training documents."""
    test: list[str] = field(default_factory=list)
    """Files to score the finished model on; if none, a part of the training documents."""
    shards: str | None = None
    """A folder written by `rayner prepare`, instead of files."""
    scheme: str = "auto"
    """Tag scheme of the files: IOB1, BIO, BIOES, BILOU, BMES, IO (bare labels), or auto: detected."""
    dev_fraction: float = 0.1
    """Share of the training documents that becomes dev where no dev files are given."""
    test_fraction: float = 0.1
    """Share of the training documents that becomes test where no test files are given."""
    max_bad_fraction: float = 0.01
    """Stop if more than this share of the records has to be rejected."""
    reader: FormatOptions = field(default_factory=FormatOptions)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)

    def find_problems(self) -> list[UserError]:
        """Every mistake in these settings."""
        problems: list[UserError] = []
        if bool(self.train) == bool(self.shards):
            problems.append(
                CorpusError(
                    "no corpus is given" if not self.train else "a corpus is given twice",
                    rule="either `--corpus.train` (files) or `--corpus.shards` (a folder written by `rayner prepare`)",
                    remedy="for a first try: `rayner train --config quickstart`",
                )
            )
        if self.shards and (self.dev or self.test):
            problems.append(CorpusError("`--corpus.shards` already holds dev and test", remedy="leave those out"))
        if self.scheme != "auto" and self.scheme not in SCHEMES:
            rule = "one of auto, " + ", ".join(SCHEMES)
            problems.append(CorpusError("no such tag scheme", where="`corpus.scheme`", rule=rule, value=self.scheme))
        for name in ("dev_fraction", "test_fraction", "max_bad_fraction"):
            if not 0 <= getattr(self, name) < 1:
                rule, value = "0 ≤ fraction < 1", getattr(self, name)
                problems.append(
                    CorpusError("a fraction out of range", where=f"`corpus.{name}`", rule=rule, value=value)
                )
        problems += self.augmentation.find_problems()
        if not self.shards:
            problems += self.augmentation.find_gazetteer_problems()
        return problems

    def list_patterns(self) -> dict[str, list[str]]:
        """Split → what stands for its files."""
        return {split: getattr(self, split) for split in SPLITS}

    def find_datasets(self) -> list[str]:
        """The names of those of its files that are datasets on the hub."""
        files = [*self.train, *self.dev, *self.test]
        return sorted({split_id(file)[0] for file in files if file.startswith(PREFIX)})

    def find_idle(self) -> list[str]:
        """Settings given that change nothing in this run, each with its reason."""
        plain = CorpusConfig()
        reasons = {f"{split}_fraction": f"{split} files are given" for split in ("dev", "test") if getattr(self, split)}
        if self.shards:
            names = ("scheme", "dev_fraction", "test_fraction", "max_bad_fraction", "reader", "augmentation")
            reasons |= dict.fromkeys(names, "the shards are prepared")
        given = {name: why for name, why in reasons.items() if getattr(self, name) != getattr(plain, name)}
        idle = [f"`corpus.{name}` has no effect: {why}" for name, why in given.items()]
        return idle if self.shards else idle + self.reader.find_idle("corpus.reader") + self.augmentation.find_idle()
