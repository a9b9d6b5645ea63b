"""Read, check, split and tokenize a corpus once, into shards of Parquet that `train` takes any number of times."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipelines.cluster import ClusterConfig, connect
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.preparation import prepare_shards
from pipelines.corpus.reading import find_all_files
from pipelines.corpus.shards import SHARDS_FILE
from pipelines.folders import check_replaceable, check_unshared, list_content, lock_folder, prepare_output_dir
from pipelines.job import console, render_next, run_door, warn_of_idle
from pipelines.ner.encoding import EncodingConfig
from pipelines.ner.errors import raise_all
from pipelines.ner.model import ModelConfig
from pipelines.replacement import STAGING_FOLDER, check_inputs_stay, replace_content
from pipelines.run_record import RunRecord
from pipelines.settings import ConfigError
from pipelines.terminal import print_shards


@dataclass(frozen=True)
class PrepareConfig:
    """Settings of `rayner prepare`."""

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    output_dir: str = "out/shards"
    """Where the shards go; a local path, or one that every node sees."""
    num_actors: int = 1
    """Tokenizing actors."""
    seed: int = 1
    """Seed of a `scratch` encoder's weights."""
    fresh: bool = False
    """Replace shards that are already there."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door and return its exit code."""
    return run_door("prepare", PrepareConfig, run, __doc__ or "", argv)


def run(config: PrepareConfig) -> None:
    """Prepare shards as configured."""
    problems = config.corpus.find_problems()
    if config.corpus.shards:
        problems = [ConfigError("`prepare` reads files, not shards", remedy="give `--corpus.train`")]
    raise_all(problems + config.cluster.find_problems())
    folder = prepare_output_dir(config.output_dir)
    with lock_folder(folder):
        _run(config, folder)


def _run(config: PrepareConfig, folder: Path) -> None:
    """Prepare, in a folder that is ours."""
    if {path.name for path in list_content(folder)} - {STAGING_FOLDER} and not config.fresh:
        raise ConfigError(
            "the output folder is not empty",
            where=str(folder),
            rule="shards are written into a new or empty folder",
            remedy="give another `--output_dir`, or replace what is there with `--fresh`",
        )
    check_replaceable(folder)
    check_inputs_stay(folder, config)
    check_unshared(folder)
    find_all_files(config.corpus.list_patterns())
    warn_of_idle(config.corpus.find_idle())
    record = RunRecord("prepare", config)
    told = record.phase("prepare", "reading, checking and tokenizing the corpus")
    with connect(config.cluster), told, replace_content(folder, last=SHARDS_FILE) as made:
        info = prepare_shards(
            config.corpus, config.encoding, config.model, made, seed=config.seed, num_actors=config.num_actors
        )
    record.write(folder, shards=asdict(info))
    print_shards(info, folder)
    console.print()
    console.print(render_next(f"rayner train --corpus.shards {folder} --output_dir out/run"))


if __name__ == "__main__":
    sys.exit(main())
