"""The rounds of a search: trials, then their leaders with other seeds."""

from collections.abc import Mapping
from pathlib import Path

from pipelines.training.resources import ResourcesConfig
from pipelines.tuning.budget import Budget, close_s, estimate_trial_s, keep_back_s
from pipelines.tuning.config import SearchConfig, TuneError
from pipelines.tuning.domains import Value
from pipelines.tuning.leaders import BASE, Leader, choose_leaders, gather_leaders, list_kept, plan_repeats, rank_trials
from pipelines.tuning.running import Bench, BuildJob
from pipelines.tuning.sampling import Sampler
from pipelines.tuning.schedulers import build_scheduler
from pipelines.tuning.search import Limits, Tell, run_trials
from pipelines.tuning.slots import Slots
from pipelines.tuning.space import Space
from pipelines.tuning.trials import FAILED, OPEN, REFUSED, STOPPED, Journal, Plan, Trial


class Rounds:
    """A search in a run folder.

    Args:
        num_epochs: the most that a trial may have.
        build_job: (settings, seed) → what is trained.
        resources: what each trial's training takes.
        base_values: what the recipe has for the settings of the space.
    """

    def __init__(
        self,
        folder: Path,
        search: SearchConfig,
        space: Space,
        num_epochs: int,
        build_job: BuildJob,
        slots: Slots,
        resources: ResourcesConfig,
        budget: Budget,
        base_values: Mapping[str, Value] | None = None,
    ) -> None:
        self.config, self.space, self.slots, self.budget = search, space, slots, budget
        self.num_epochs, self.build_job, self.resources = num_epochs, build_job, resources
        self.trials = Journal(folder / "trials")
        self.repeats = Journal(folder / "leaders")
        self.base_values = base_values
        self.was_cut = False
        """Whether time ended a round before its work was done."""
        self.is_exhausted = False
        """Whether the space had no more for a trial that was yet to be drawn."""
        self.trained_again: str | None = None
        """What to add where the winner was trained once more for its weights."""

    def search(self, seed: int, tell: Tell) -> None:
        """Run the trials: the recipe as it is first, then what the sampler draws. Raises TuneError."""
        config, journal = self.config, self.trials
        sampler = Sampler(self.space, config.sampler, config.seed, cost=config.cost, recipe=self.base_values)

        def draw(trials: list[Trial], number: int) -> Plan | None:
            is_recipe = number == BASE and config.sampler != "pbt"
            settings: dict[str, Value] | None = {} if is_recipe else sampler.draw(trials, number)
            self.is_exhausted = settings is None
            return None if settings is None else journal.add(settings, seed)

        trials = journal.read_all()
        is_population = config.sampler == "pbt"
        lacks_weights = self._lacks_weights(seed)
        limits = Limits(
            self.budget,
            lambda trials: keep_back_s(config, trials, self.slots.concurrent) + _train_again_s(trials, lacks_weights),
            config.patience,
            is_first=not any(trial.epochs for trial in trials),
            is_population=is_population,
        )
        try:
            run_trials(
                self._make_bench(journal, pauses=is_population or config.scheduler == "hyperband"),
                journal,
                self.slots,
                limits,
                draw=draw,
                scheduler=build_scheduler(
                    config,
                    self.space,
                    self.num_epochs,
                    done=min((len(trial.epochs) for trial in trials if trial.status == OPEN), default=0),
                ),
                is_population=is_population,
                num_trials=config.num_trials,
                keep=self._keep_leaders,
                tell=tell,
            )
        except TuneError:
            begun = journal.read_all()
            if limits.is_hopeless or not any(trial.epochs for trial in begun):  # else there is work to go on with
                for trial in begun:
                    journal.remove(trial.number)
            raise
        self.was_cut |= limits.has_ended and not limits.has_settled
        self._check_scores()

    def list_seeds(self, seed: int) -> list[int]:
        """The seeds of a leader, that of the search first."""
        return [seed + number for number in range(self.config.num_seeds)]

    def list_repeats(self, seed: int) -> list[tuple[dict[str, Value], int]]:
        """(settings, seed) of what leaders lack."""
        return plan_repeats(choose_leaders(self.trials.read_all(), self.config.num_leaders), self.list_seeds(seed))

    def repeat_leaders(self, seed: int, tell: Tell) -> list[Leader]:
        """Train the best settings, and the recipe as it is, with other seeds; the winner is the first."""
        leaders = choose_leaders(self.trials.read_all(), self.config.num_leaders)
        wanted = self.list_repeats(seed)
        known = [(trial.plan.settings, trial.plan.seed) for trial in self.repeats.read_all()]
        for settings, one in wanted:
            if (settings, one) not in known:
                self.repeats.add(settings, one)
        searched = self.trials.read_all()
        lacks_weights = self._lacks_weights(seed)

        def keep_back(trials: list[Trial]) -> float:
            known = [*trials, *searched]
            return close_s(estimate_trial_s(known)) + _train_again_s(known, lacks_weights)

        limits = Limits(self.budget, keep_back, is_first=False)
        repeats = self.repeats.read_all()
        lacking = {one.number for one in repeats if (one.plan.settings, one.plan.seed) in wanted}
        self._run_all(self.repeats, limits, tell, only=lacking)  # not those of leaders that lead no more
        self.was_cut |= limits.has_ended
        return gather_leaders(leaders, self.list_seeds(seed), self.trials, self.repeats)

    def ensure_weights(self, winner: Leader, tell: Tell) -> Path:
        """The folder of the winner's best run, trained once more if its weights were not kept."""
        folder = winner.best_run.folder
        journal = Journal(folder.parent)
        if _has_weights(winner):
            return folder
        plan = journal.read_plan(int(folder.name))
        again = Journal(self.trials.folder.with_name("winner"))
        if [(trial.plan.settings, trial.plan.seed) for trial in again.read_all()] != [(plan.settings, plan.seed)]:
            for trial in again.read_all():
                again.remove(trial.number)
            again.add(plan.settings, plan.seed)
        unlimited = Limits(Budget(self.trials.folder.parent, None), lambda trials: 0.0, is_first=False)
        self._run_all(again, unlimited, tell)
        over_s = -self.budget.left_s()
        self.trained_again = f", {over_s:.0f} s beyond the budget" if over_s > 0 else ""
        return again.find(0)

    def forget_weights(self) -> None:
        """Free the room of all checkpoints: the bundle has what is needed."""
        for journal in (self.trials, self.repeats):
            for trial in journal.read_all():
                if trial.status != OPEN:
                    journal.forget_weights(trial.number)

    def list_notes(self, leaders: list[Leader]) -> list[str]:
        """Sentences on what a reader should be careful with."""
        trials = self.trials.read_all()
        notes = [
            "Trials are compared by strict micro F1 on dev, of their best epoch. The test split was scored once, for "
            "the winner."
        ]
        if self.was_cut:
            notes.append(
                "The budget ended the search before all was done; the same command with more of it, and without "
                "`--fresh`, goes on."
            )
        if self.is_exhausted:
            notes.append(f"The space had no more than these {len(trials)} trials to draw that differ.")
        if not leaders[0].best_run.is_whole:
            notes.append(
                "The winner was not trained from its first epoch to its last with its settings: time ended before that."
            )
        if self.trained_again is not None:
            notes.append(
                "The winner's weights were gone with the search that was finished before: it was trained once more"
                f"{self.trained_again}."
            )
        if any(trial.status == STOPPED for trial in trials):
            notes.append("A trial stopped early might have come out better than it stood.")
        if any(trial.plan.turns for trial in trials):
            notes.append(
                "Members of the population changed their settings while they trained; leaders are trained with their "
                "last ones from the start, which may give another F1."
            )
        return notes

    def _run_all(self, journal: Journal, limits: Limits, tell: Tell, *, only: set[int] | None = None) -> None:
        """Run the trials that a journal has, or only some of them, to their end."""
        run_trials(
            self._make_bench(journal, pauses=False),
            journal,
            self.slots,
            limits,
            draw=lambda trials, number: None,
            num_trials=journal.count(),
            only=only,
            keep=_keep_best_of_each,
            tell=tell,
        )

    def _make_bench(self, journal: Journal, *, pauses: bool) -> Bench:
        return Bench(
            journal.folder,
            self.build_job,
            self.resources,
            self.slots.gpus,
            self.slots.is_alone,
            pauses,
            self.config.cost == "flops",
            self.slots.may_grow,
        )

    def _keep_leaders(self, trials: list[Trial]) -> set[int]:
        return list_kept(trials, self.config.num_leaders)

    def _lacks_weights(self, seed: int) -> bool:
        """Whether some leader, which may win, has no weights any more."""
        leaders = choose_leaders(self.trials.read_all(), self.config.num_leaders)
        found = gather_leaders(leaders, self.list_seeds(seed), self.trials, self.repeats)
        return not all(map(_has_weights, found))

    def _check_scores(self) -> None:
        """Raise TuneError if no trial has any score."""
        trials = self.trials.read_all()
        if rank_trials(trials):
            return
        wrong = next((trial for trial in trials if trial.status in (FAILED, REFUSED)), None)
        raise TuneError(
            "no trial has a score",
            where=str(self.trials.folder),
            rule="one epoch of one trial at least",
            value=f"trial {wrong.number} {wrong.status}: {wrong.reason}" if wrong else "time ended before one epoch",
            remedy="try the recipe with `rayner train`, or give more time",
        )


def _has_weights(leader: Leader) -> bool:
    """Whether those of its best run are kept: once a search is finished, they are not."""
    folder = leader.best_run.folder
    return Journal(folder.parent).has_weights(int(folder.name))


def _train_again_s(trials: list[Trial], lacks_weights: bool) -> float:
    """Seconds to train a winner without weights once more."""
    return estimate_trial_s(trials) or 0.0 if lacks_weights else 0.0


def _keep_best_of_each(trials: list[Trial]) -> set[int]:
    """Of equal settings the best run."""
    best: dict[str, Trial] = {}
    for trial in rank_trials(trials):
        best.setdefault(str(trial.plan.settings), trial)
    return {trial.number for trial in best.values()}
