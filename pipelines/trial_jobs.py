"""The training jobs of a search: one recipe with other settings each time, on shards that are made once."""

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.shards import ShardsInfo, find_shards_encoder
from pipelines.ner.encoding import EncodingConfig
from pipelines.ner.errors import UserError, raise_all
from pipelines.ner.model import ModelConfig
from pipelines.run_record import RunRecord
from pipelines.runs import build_job, get_shards
from pipelines.training.config import TrainingConfig, find_contradictions
from pipelines.training.job import TrainingJob
from pipelines.training.optimizer import choose_learning_rate
from pipelines.training.parallel import ParallelConfig
from pipelines.training.strategies import find_misfits
from pipelines.tuning.domains import SpaceError, Value
from pipelines.tuning.space import SEED, Space, apply_settings, read_path

AUGMENTATION = "corpus.augmentation."
ENCODING = ("encoding.", "model.encoder", "model.scheme", "model.casing", AUGMENTATION)
"""Settings whose every value needs shards of its own."""
ANY_WIDTH = 384
MAX_ENCODINGS = 16


@dataclass(frozen=True)
class Recipe:
    """The settings that make a model what it is."""

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def find_problems(self) -> list[UserError]:
        """Every mistake in the settings."""
        return [
            *self.corpus.augmentation.find_problems(),
            *self.model.find_problems(),
            *self.training.find_problems(),
            *self.parallel.find_problems(),
            *find_contradictions(self.model, self.training, self.parallel),
        ]

    def identify_encoding(self) -> str:
        """The same for all recipes that can share shards."""
        model = self.model
        content: list[Any] = [asdict(self.encoding), model.encoder, model.scheme, model.casing]
        if self.corpus.augmentation.rates:
            content.append(asdict(self.corpus.augmentation))
        return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Prepared:
    """A tokenized corpus with its encoder."""

    shards: Path
    info: ShardsInfo
    encoder: str


@dataclass(frozen=True)
class TrialJobs:
    """Makes the training job of settings and a seed; it travels to other machines."""

    recipe: Recipe
    prepared: dict[str, Prepared]
    """By `Recipe.identify_encoding`."""
    num_workers: int = 1
    use_gpu: bool = False

    def __call__(self, settings: Mapping[str, Value], seed: int) -> TrainingJob:
        """Raise UserError for settings that contradict each other."""
        recipe = self.apply(settings, seed)
        raise_all(recipe.find_problems())
        prepared = self.find_prepared(recipe)
        training, dropout = recipe.training, recipe.model.dropout
        raise_all(find_misfits(recipe.parallel, self.num_workers, self.use_gpu, prepared.encoder, training, dropout))
        return build_job(
            prepared.shards, prepared.info, prepared.encoder, recipe.model, recipe.training, recipe.parallel
        )

    def apply(self, settings: Mapping[str, Value], seed: int) -> Recipe:
        """The recipe with these settings."""
        changed: Recipe = apply_settings(self.recipe, {**settings, SEED: seed})
        return changed

    def find_prepared(self, recipe: Recipe) -> Prepared:
        """The corpus as a recipe reads it."""
        return self.prepared[recipe.identify_encoding()]


def list_encodings(recipe: Recipe, space: Space) -> list[Recipe]:
    """A recipe for every way of encoding the corpus that a space has, the given one first. Raises SpaceError."""
    paths = [path for path in space if path.startswith(ENCODING)]
    problems: list[UserError] = [
        SpaceError(
            "every value of this setting needs a tokenized corpus of its own",
            where=f"`space.{path}`",
            rule="values to choose from",
            value=space[path].describe(),
            remedy=f"`--space.{path} VALUE VALUE …`",
        )
        for path in paths
        if space[path].kind != "choice"
    ]
    if recipe.corpus.shards:
        problems += [
            SpaceError(
                "the corpus is prepared already",
                where=f"`space.{path}`",
                rule="augmentation happens when files are prepared",
                value=recipe.corpus.shards,
                remedy="give the files as `--corpus.train` instead of shards, or leave it out of the space",
            )
            for path in paths
            if path.startswith(AUGMENTATION)
        ]
    raise_all(problems)
    combinations = itertools.product(*(space[path].choices for path in paths))
    found = {recipe.identify_encoding(): recipe}
    for values in combinations:
        one: Recipe = apply_settings(recipe, dict(zip(paths, values, strict=True)))
        found.setdefault(one.identify_encoding(), one)
        if len(found) > MAX_ENCODINGS:
            rule = f"at most {MAX_ENCODINGS} ways of encoding the corpus, each of which is tokenized once"
            raise SpaceError("too many encodings", where="`space`", rule=rule, value=", ".join(paths))
    return list(found.values())


def prepare_encodings(recipes: list[Recipe], folder: Path, record: RunRecord) -> tuple[dict[str, Prepared], bool]:
    """Shards and encoder of every way of encoding, made once; and whether any of them is new."""
    prepared, is_any_new = {}, False
    seed = recipes[0].training.seed
    for recipe in recipes:
        name = recipe.identify_encoding()
        shards, info, is_new = get_shards(recipe.corpus, recipe.encoding, recipe.model, seed, folder / name, record)
        prepared[name] = Prepared(shards, info, find_shards_encoder(shards, info))
        is_any_new |= is_new
    return prepared, is_any_new


def read_base_values(recipe: Recipe, space: Space, encoder: str | None) -> dict[str, Any]:
    """What the recipe has for the settings of a space; for learning rates what their defaults mean for its encoder.

    Before the encoder is there (None), some number stands for those.
    """
    values = {path: read_path(recipe, path) for path in space}
    optimizer = recipe.training.optimizer
    rate = optimizer.learning_rate
    if rate is None and "model.encoder" not in space:
        width = AutoConfig.from_pretrained(encoder, trust_remote_code=False).hidden_size if encoder else ANY_WIDTH
        rate = choose_learning_rate(width)
    defaults = {
        "training.optimizer.learning_rate": rate,
        "training.optimizer.head_learning_rate": None if rate is None else max(rate, min(10 * rate, 2e-3)),
    }
    for path, value in defaults.items():
        if path in values and values[path] is None:
            values[path] = value
    return values
