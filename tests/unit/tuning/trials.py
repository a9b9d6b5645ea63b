"""Trials made by hand, and written as a search writes them."""

from pathlib import Path

from pipelines.training.history import append_metrics
from pipelines.tuning.trials import FINISHED, Journal, Plan, Trial


def make_trial(number, f1s, status=FINISHED, settings=None, seed=1, train_s=10.0, **more):
    epochs = tuple(enumerate(f1s, 1))
    return Trial(Plan(number, settings or {}, seed), status, epochs=epochs, train_s=train_s, **more)


def write_trial(journal: Journal, settings, f1s, status=None, seed=1, num_epochs=3, step_s=0.5, steps=4) -> Path:
    """A trial of so many steps an epoch, each of which took `step_s`."""
    plan = journal.add(settings, seed)
    folder = journal.find(plan.number)
    rows = [{"kind": "start", "step": 0, "num_epochs": num_epochs, "num_steps": num_epochs * steps}]
    for epoch, f1 in enumerate(f1s, 1):
        for step in range((epoch - 1) * steps + 1, epoch * steps + 1):
            rows.append({"kind": "step", "step": step, "seconds": step_s, "num_tokens": 100})
        rows.append({"kind": "epoch", "step": epoch * steps, "epoch": epoch, "dev_f1": f1, "evaluation_s": 1.0})
    append_metrics(folder / "metrics.jsonl", rows)
    if status:
        journal.end(plan.number, status, "because")
    return folder
