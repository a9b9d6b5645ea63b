"""The gate: what it lets through, what it stops, and with which reason."""

from pipelines.compression.config import Tolerance
from pipelines.compression.gate import judge

LABELS = ("LOC", "PER")


def make_documents(num_found: int, *, label: str = "PER", num_documents: int = 200):
    """Documents with an entity of each label; of one label only so many are found."""
    return {
        f"d{number}": {
            name: [1, 0, 0, 1, 0, 0] if name != label or number < num_found else [0, 0, 1, 0, 0, 1] for name in LABELS
        }
        for number in range(num_documents)
    }


def test_equal_models_pass_whatever_is_tolerated():
    start = make_documents(180)
    verdict = judge(start, start, Tolerance(0.1, 0.1))
    assert verdict.passes
    assert (verdict.overall.difference, verdict.overall.low, verdict.overall.high) == (0, 0, 0)
    assert set(verdict.labels) == set(LABELS)


def test_loss_that_is_not_excluded_is_stopped_with_its_interval():
    verdict = judge(make_documents(180), make_documents(170), Tolerance(1.0, 50.0))
    assert not verdict.passes
    [reason] = verdict.reasons
    assert f"{verdict.overall.difference:+.2f} points" in reason
    assert verdict.overall.low < verdict.overall.difference < verdict.overall.high < 0
    assert judge(make_documents(180), make_documents(170), Tolerance(5.0, 50.0)).passes


def test_label_that_is_shown_to_lose_stops_a_model_that_is_good_overall():
    verdict = judge(make_documents(180), make_documents(140), Tolerance(30.0, 5.0))
    assert [reason.split()[0] for reason in verdict.reasons] == ["PER"]
    assert verdict.labels["LOC"].difference == 0
    assert verdict.labels["PER"].high < -5


def test_rare_label_that_may_have_lost_does_not():
    """One entity of 3 lost: its interval reaches zero, and nothing is shown."""
    start, variant = (make_documents(found, num_documents=3) for found in (3, 2))
    verdict = judge(start, variant, Tolerance(100.0, 5.0))
    assert verdict.labels["PER"].difference < -5
    assert verdict.passes
