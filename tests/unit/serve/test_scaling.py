"""How many replicas a load needs: more for more, none for none, and never to and fro."""

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.scaling import METRIC, STEADY, TokenPolicy, choose_replicas

loads = st.integers(0, 10**7)
targets = st.floats(1, 1e5)
presents = st.integers(0, 200)


@given(loads, loads, targets, presents)
def test_more_load_never_wants_fewer_replicas(load, more, target, present):
    load, more = sorted((load, more))
    assert choose_replicas(load, target, present) <= choose_replicas(more, target, present)


@given(loads, targets, presents)
def test_constant_load_is_settled_in_one_step(load, target, present):
    settled = choose_replicas(load, target, present)
    assert choose_replicas(load, target, settled) == settled


@given(loads, targets, presents)
def test_no_replica_is_above_its_target_and_none_is_far_below(load, target, present):
    wanted = choose_replicas(load, target, present)
    assert wanted * target >= load * (1 - 1e-9)
    assert wanted <= math.ceil(load / target / (1 - STEADY)) + 1


def test_small_changes_of_the_load_change_nothing():
    assert {choose_replicas(load, 1000, 10) for load in range(7000, 10_001, 100)} == {10}
    assert choose_replicas(6900, 1000, 10) == 7
    assert choose_replicas(10_100, 1000, 10) == 11


def test_no_load_wants_none():
    assert choose_replicas(0, 1000, 5) == 0
    assert choose_replicas(0, 1000, 0) == 0
    assert choose_replicas(1, 1000, 0) == 1


def decide(loads: dict | None, *, running: str = "", silent: str = "", present: int = 1) -> int:
    """Of a policy with a target of 1000; `silent` replicas run and have told nothing of late."""
    metrics = loads and {METRIC: loads, "other": {"a": 9e9}}
    samples = metrics and {METRIC: {name: [] if name in silent else [1] for name in loads}}
    context = SimpleNamespace(
        aggregated_metrics=metrics, raw_metrics=samples, target_num_replicas=present, running_replicas=list(running)
    )
    wanted, state = TokenPolicy(1000)(context)
    assert state == {}
    return wanted


def test_policy_adds_up_what_the_replicas_record():
    assert decide(None) == decide({}) == 0
    assert decide({"a": 1500.0, "b": 600.0}, running="ab", present=2) == 3
    assert decide({"a": 0.0, "b": 0.0}, running="ab", present=2) == 0


@pytest.mark.parametrize("loads", [None, {"a": 100.0}, {"a": 100.0, "b": 0.0}])
def test_replica_that_is_too_busy_to_tell_its_load_is_not_taken_for_idle(loads):
    assert decide(loads, running="ab", silent="b", present=3) == 3
    assert decide((loads or {}) | {"a": 5000.0}, running="ab", silent="b", present=3) == 5
