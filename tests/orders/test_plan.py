"""Order plans: replayed on states that record their path, within the memory budget, with known step counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastprobe import orders
from fastprobe.errors import InputError
from fastprobe.orders.plan import ROOT, OrderPlan

ORDERS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=20)


def replayed(plan, budget, batch):
    """Run a plan on states that are tuples of steps. Return the orders and the largest number of states held."""
    states, complete, peak = {ROOT: ()}, {}, 1
    for application in plan.schedule(budget, batch):
        assert len(application.inputs) == len(application.outputs) <= batch
        for before, after in zip(application.inputs, application.outputs, strict=True):
            states[after] = (*states[before], application.step)
        peak = max(peak, len(states))
        for node, order in application.ends:
            complete[order] = states[node]
        for node in application.freed:
            del states[node]
    assert not states, "some states were never freed"
    return [complete[order] for order in range(len(plan.ends))], peak


@given(ORDERS, st.integers(1, 30), st.integers(1, 5))
def test_a_plan_runs_every_order_and_each_prefix_once(wanted, budget, batch):
    plan = OrderPlan.of(wanted)

    got, peak = replayed(plan, budget, batch)

    assert got == [tuple(order) for order in wanted]
    assert sum(len(a.outputs) for a in plan.schedule(budget, batch)) == plan.applications
    assert plan.applications == len({tuple(order[:k]) for order in wanted for k in range(1, len(order) + 1)})
    assert plan.naive_applications == sum(map(len, wanted))
    assert peak == plan.peak_states(budget, batch) <= max(budget, 1 + max(map(len, wanted)))


@pytest.mark.parametrize(
    ("family", "applications", "naive"),
    [
        (orders.swaps(12), 584, 804),
        (orders.swaps(12, adjacent=True), 89, 144),
        (orders.drops(12), 78, 144),
        (orders.drops(12, 2), 287, 672),
        (orders.moves(12), 859, 1464),
        (orders.repeats(12), 90, 168),
    ],
    ids=["swaps", "adjacent", "drops", "pair-drops", "moves", "repeats"],
)
def test_the_number_of_layer_runs_for_twelve_layers(family, applications, naive):
    plan = OrderPlan.of([orders.identity(12), *family])

    assert (plan.applications, plan.naive_applications) == (applications, naive)


def test_a_large_budget_needs_fewer_calls_than_a_small_one():
    plan = OrderPlan.of(orders.swaps(12))

    deep, broad = (sum(1 for _ in plan.schedule(budget, 1000)) for budget in (1, 1000))

    assert deep == plan.applications
    assert broad <= 144  # at most twelve different steps on each of twelve levels


def test_an_empty_order_raises_an_error():
    with pytest.raises(InputError, match="order: it is empty"):
        OrderPlan.of([[0], []])


@pytest.mark.parametrize("family", [orders.swaps(12), orders.drops(12, 2), orders.shuffles(12, 4), orders.blocks(8)])
def test_a_schedule_stays_within_its_budget(family):
    plan = OrderPlan.of(family)
    path = 1 + max(map(len, family))

    for budget in range(1, 150):
        assert plan.peak_states(budget) <= max(budget, path)
