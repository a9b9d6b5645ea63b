"""What `rayner train --config` repeats a found trial with: `best.yaml`, and a preset of each trial on the front."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.formats.files import locate_files
from pipelines.ner.encoders import SCRATCH, locate_encoder
from pipelines.ner.files import write_text
from pipelines.trial_jobs import TrialJobs
from pipelines.tuning.domains import Value
from pipelines.tuning.leaders import Run
from pipelines.tuning.presets import render_preset
from pipelines.tuning.slots import Slots
from pipelines.tuning.trials import Trial


def render_run(jobs: TrialJobs, slots: Slots, number: int, settings: dict[str, Value], run: Run) -> str:
    """The preset of a run of a trial."""
    comments = [
        f"Found by `rayner tune`, trial {number}; dev strict F1 {run.f1:.4f} with seed {run.seed}.",
        "`resources` are those of the search: with others, sums are rounded otherwise, and F1 may differ a little.",
    ]
    if not run.is_whole:
        comments.append(
            "Time ended it before its last epoch, or its settings changed in training: this trains with these from the "
            "start to the end, and may reach another F1."
        )
    recipe = jobs.apply(settings, run.seed)
    prepared = jobs.find_prepared(recipe)
    corpus: CorpusConfig | dict[str, Any] = _locate_corpus(recipe.corpus)
    if recipe.corpus.shards or prepared.info.split_off or prepared.info.encoder == SCRATCH:
        corpus = {"shards": str(prepared.shards)}  # splits and vocabulary that were made there
    named = prepared.info.encoder if recipe.corpus.shards else recipe.model.encoder
    located = locate_encoder(named)
    encoder = recipe.model.encoder if located == named else located
    return render_preset(
        {
            "corpus": corpus,
            "model": replace(recipe.model, encoder=encoder),
            "encoding": recipe.encoding,
            "training": recipe.training,
            "parallel": recipe.parallel,
            "resources": {
                "num_workers": slots.num_workers,
                "cpus_per_worker": slots.cpus,
                "use_gpu": slots.gpus > 0,
            },
        },
        comments,
    )


def write_front(folder: Path, front: list[Trial], jobs: TrialJobs, slots: Slots) -> None:
    """A preset of each trial that no other one beats at its cost."""
    folder.mkdir(exist_ok=True)
    names = {trial.number: f"trial-{trial.number:04}.yaml" for trial in front}
    for trial in front:
        run = Run(trial.plan.seed, trial.best_f1 or 0.0, folder, trial.is_whole)
        preset = render_run(jobs, slots, trial.number, trial.plan.settings, run)
        write_text(folder / names[trial.number], preset)
    for old in folder.glob("trial-*.yaml"):
        if old.name not in names.values():
            old.unlink()


def _locate_corpus(corpus: CorpusConfig) -> CorpusConfig:
    """Files by their whole path, so that the preset works from any folder."""
    given = (corpus.train, corpus.dev, corpus.test, corpus.augmentation.gazetteer)
    train, dev, test, gazetteer = ([locate_files(one) for one in names] for names in given)
    augmentation = replace(corpus.augmentation, gazetteer=gazetteer)
    return replace(corpus, train=train, dev=dev, test=test, augmentation=augmentation)
