"""Workflows as they are written, what is wrong with them, and what the end of one step means for the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from asyncsched import (
    AsyncSchedError,
    Condition,
    CycleError,
    DefinitionError,
    DuplicateStepError,
    EmptyWorkflowError,
    Retry,
    Task,
    TwoFinalStepsError,
    UnknownStepError,
    Workflow,
    WorkflowError,
    on_complete,
    on_failure,
    on_skipped,
    on_success,
)
from asyncsched.flowform import (
    END_STATES,
    EndForm,
    FlowForm,
    StepForm,
    before_of,
    begun,
    cancelled,
    opened_by,
    told,
)


async def work() -> None: ...


# -- what is wrong with it ---------------------------------------------------------------------------------------------


def test_a_step_that_comes_after_itself_is_refused_at_once() -> None:
    with pytest.raises(CycleError, match=r"'a' before 'a'") as caught:
        Workflow("w").step("a", work, after="a")
    assert caught.value.steps == ("a", "a")


def test_a_circle_is_refused_by_the_call_that_closes_it_and_the_message_names_its_steps() -> None:
    flow = Workflow("w").step("a", work, after="c").step("b", work, after="a")
    with pytest.raises(CycleError, match=r"workflow 'w' wait for each other: .*'a'.*'b'.*'c'|'c'") as caught:
        flow.step("c", work, after=["b"])
    circle = caught.value.steps
    assert circle[0] == circle[-1]
    assert set(circle) == {"a", "b", "c"}
    assert "c" not in flow.steps


def test_a_step_after_the_final_one_is_a_circle() -> None:
    with pytest.raises(CycleError, match="end"):
        Workflow("w").step("a", work).final("end", work).step("b", work, after="end")
    with pytest.raises(CycleError, match="end"):
        Workflow("w").step("b", work, after="end").final("end", work)


def test_two_steps_of_one_name_are_refused() -> None:
    with pytest.raises(DuplicateStepError, match="'a' already"):
        Workflow("w").step("a", work).step("a", work)
    with pytest.raises(DuplicateStepError, match="'a' already"):
        Workflow("w").step("a", work).final("a", work)


def test_a_second_final_step_is_refused() -> None:
    with pytest.raises(TwoFinalStepsError, match=r"final step 'end' already, so 'finish'") as caught:
        Workflow("w").step("a", work).final("end", work).final("finish", work)
    assert caught.value.steps == ("end", "finish")


def test_a_step_after_one_that_is_not_there_is_refused() -> None:
    flow = Workflow("w").step("a", work).step("b", work, after=["a", on_failure("nobody")])
    with pytest.raises(UnknownStepError, match=r"step 'b' .* comes after 'nobody'"):
        flow.check()


@pytest.mark.parametrize("flow", [Workflow("w"), Workflow("w").final("end", work)])
def test_a_workflow_without_steps_is_refused(flow: Workflow) -> None:
    with pytest.raises(EmptyWorkflowError, match="'w' has no steps"):
        flow.check()


def test_what_is_wrong_with_a_workflow_is_a_definition_error_that_names_it() -> None:
    for kind in (CycleError, DuplicateStepError, EmptyWorkflowError, TwoFinalStepsError, UnknownStepError):
        assert issubclass(kind, WorkflowError)
        assert issubclass(kind, DefinitionError)
        assert issubclass(kind, AsyncSchedError)
        assert issubclass(kind, ValueError)
    with pytest.raises(WorkflowError) as caught:
        Workflow("nightly").check()
    assert caught.value.workflow == "nightly"


@pytest.mark.parametrize("policies", [{"overlap": "allow"}, {"max_runs": 3}, {"on_exhausted": "pause"}])
def test_a_policy_about_what_comes_after_a_run_is_none_for_a_step(
    policies: Mapping[str, object],
) -> None:
    with pytest.raises(WorkflowError, match=next(iter(policies))):
        Workflow("w").step("a", work, **policies)  # type: ignore[arg-type]  # whatever a test gives
    with pytest.raises(WorkflowError, match=next(iter(policies))):
        Workflow("w").step("a", Task(work, "work").options(**policies).bind())


@pytest.mark.parametrize("name", ["", "a#b", "x" * 256, 7])
def test_a_step_has_a_name_that_an_id_can_end_with(name: str) -> None:
    with pytest.raises(DefinitionError, match="a step's name"):
        Workflow("w").step(name, work)


def test_after_takes_names_and_conditions_only() -> None:
    with pytest.raises(DefinitionError, match="names of steps"):
        Workflow("w").step("a", work, after=[3])  # type: ignore[list-item]  # mypy is right: that is what is tested


def test_a_workflow_is_no_task_of_a_step() -> None:
    inner = Workflow("inner").step("a", work)
    with pytest.raises(DefinitionError, match=r"'b' is given workflow 'inner'.*add its steps to this one"):
        Workflow("w").step("b", inner)


def test_more_steps_than_a_thousand_are_refused() -> None:
    flow = Workflow("w")
    for number in range(1000):
        flow.step(str(number), work)
    with pytest.raises(WorkflowError, match="split it"):
        flow.step("1000", work)


def test_steps_show_what_they_come_after() -> None:
    flow = (
        Workflow("w")
        .step("a", work, retry=Retry(max_attempts=2))
        .step("b", work, after="a")
        .step("c", work, after=["a", on_skipped("b"), on_success("a")])
        .final("d", work, after=on_complete("c"))
    )
    assert flow.steps == {
        "a": (),
        "b": (Condition("a", "success"),),
        "c": (Condition("a", "success"), Condition("b", "skipped")),
        "d": (Condition("c", "complete"),),
    }
    assert repr(flow) == "<Workflow w: a, b, c, d>"


# -- what the end of a step means for the others -----------------------------------------------------------------------


def form_of(**after: object) -> FlowForm:
    """A workflow whose steps, in the order of writing, come after these; the step ``final`` is the final one."""
    flow = Workflow("w")
    for name, before in after.items():
        add = flow.final if name == "final" else flow.step
        add(name, work, after=before)  # type: ignore[arg-type]  # whatever Hypothesis draws: names and conditions
    steps = tuple(
        StepForm(
            step.name,
            "work",
            tuple((c.step, c.when) for c in step.after),
            f"1/{step.name}",
            "default",
            0,
            b"body",
            is_final=step.is_final,
        )
        for step in flow.sorted_steps()
    )
    return begun(FlowForm("w", 0.0, None, steps), 0.0)


def states(form: FlowForm) -> dict[str, str]:
    return {step.name: state.state for step, state in form.items()}


def end(form: FlowForm, step: str, state: str = "succeeded") -> FlowForm:
    return told(form, step, EndForm(state), f"end of {step}", 1.0)  # type: ignore[arg-type]  # str here, one of its literals


def test_it_begins_with_the_steps_that_wait_for_none() -> None:
    form = form_of(a=(), b="a", c=())
    assert states(form) == {"a": "open", "b": "pending", "c": "open"}
    assert [step.name for step in opened_by(form, "")] == ["a", "c"]


@pytest.mark.parametrize(
    ("condition", "runs_after"),
    [
        (on_success, {"succeeded"}),
        (on_failure, {"failed", "cancelled"}),
        (on_skipped, {"skipped"}),
        (on_complete, {"succeeded", "failed", "cancelled", "skipped"}),
    ],
)
@pytest.mark.parametrize("state", sorted(END_STATES))
def test_a_step_runs_after_the_ends_that_its_condition_names_and_is_skipped_after_others(
    condition: Callable[[str], Condition], runs_after: set[str], state: str
) -> None:
    form = end(form_of(a=(), b=condition("a")), "a", state)
    assert states(form)["b"] == ("open" if state in runs_after else "skipped")


def test_all_conditions_must_hold() -> None:
    form = form_of(a=(), b=(), c=["a", "b"])
    form = end(form, "a")
    assert states(form)["c"] == "pending"
    assert states(end(form, "b"))["c"] == "open"
    assert states(end(form, "b", "failed"))["c"] == "skipped"


def test_a_step_that_cannot_run_any_more_is_skipped_though_others_before_it_go_on() -> None:
    form = end(form_of(a=(), b=(), c=["a", "b"], d=on_skipped("c")), "a", "failed")
    assert states(form) == {"a": "failed", "b": "open", "c": "skipped", "d": "open"}


def test_a_skip_goes_down_the_whole_chain_and_its_reason_says_by_whom() -> None:
    form = end(form_of(a=(), b="a", c="b", d="c"), "a", "failed")
    assert states(form) == {"a": "failed", "b": "skipped", "c": "skipped", "d": "skipped"}
    assert [state.end.error if state.end else None for state in form.states][1:3] == [
        "it runs on success of 'a', which failed",
        "it runs on success of 'b', which was skipped",
    ]
    assert (form.outcome, form.finished_at) == ("failed", 1.0)


def test_steps_may_be_written_before_those_that_they_come_after() -> None:
    form = form_of(c="b", b="a", a=())
    assert states(form) == {"a": "open", "b": "pending", "c": "pending"}
    assert states(end(end(form, "a"), "b"))["c"] == "open"


def test_the_final_step_runs_when_all_others_have_ended_in_whatever_way() -> None:
    form = form_of(final=(), a=(), b=(), c="b")
    form = end(form, "a")
    assert states(form)["final"] == "pending"
    form = end(form, "b", "failed")
    assert states(form)["final"] == "open"
    assert form.finished_at is None
    assert [before.step for before in before_of(form, form.steps[-1])] == ["a", "b", "c"]
    form = end(form, "final")
    assert (form.outcome, form.finished_at) == ("failed", 1.0)


def test_a_final_step_whose_condition_does_not_hold_is_skipped_at_the_very_end() -> None:
    form = form_of(a=(), b=(), final=on_failure("a"))
    form = end(form, "a")
    assert states(form)["final"] == "pending"
    form = end(form, "b")
    assert (states(form)["final"], form.outcome) == ("skipped", "succeeded")


def test_a_workflow_in_which_steps_were_only_skipped_has_succeeded() -> None:
    assert end(form_of(a=(), b=on_failure("a")), "a").outcome == "succeeded"


def test_one_that_is_called_off_waits_for_what_runs_and_begins_nothing_more() -> None:
    form = cancelled(form_of(a=(), b=on_complete("a"), final=()), 5.0)
    assert states(form) == {"a": "open", "b": "cancelled", "final": "cancelled"}
    assert form.finished_at is None
    form = end(form, "a", "cancelled")
    assert (form.outcome, form.finished_at) == ("cancelled", 1.0)
    assert cancelled(form, 9.0) is form


def test_results_beyond_half_a_mebibyte_are_left_out_and_it_says_so() -> None:
    form = form_of(**{f"s{number:02}": () for number in range(40)})
    for step in form.steps:
        form = told(form, step.name, EndForm("succeeded", result=b"x" * 16_000), "t", 1.0)
    kept = [state.end for state in form.states if state.end is not None and state.end.result]
    left_out = [state.end for state in form.states if state.end is not None and state.end.result_error]
    assert len(kept) == 512 * 1024 // 16_000
    assert len(kept) + len(left_out) == 40


CONDITIONS = st.sampled_from([on_success, on_failure, on_skipped, on_complete])


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, list[Condition]]:
    """Any acyclic workflow, its steps written in any order."""
    size = draw(st.integers(1, 9))
    after: dict[str, list[Condition]] = {}
    for number in range(size):
        before = draw(st.lists(st.integers(0, number - 1), unique=True, max_size=3)) if number else []
        after[f"s{number}"] = [draw(CONDITIONS)(f"s{one}") for one in before]
    names = draw(st.permutations(sorted(after)))
    graph = {name: after[name] for name in names}
    if draw(st.booleans()):
        graph["final"] = [
            draw(CONDITIONS)(name) for name in draw(st.sets(st.sampled_from(names), max_size=2))
        ]
    return graph


MEETS = {
    "success": {"succeeded"},
    "failure": {"failed", "cancelled"},
    "skipped": {"skipped"},
    "complete": set(END_STATES),
}


@given(graphs(), st.data())
def test_whatever_the_workflow_and_the_ends_every_step_ends_once_and_as_its_conditions_say(
    graph: dict[str, list[Condition]], data: st.DataObject
) -> None:
    form = form_of(**graph)
    ended: list[str] = []
    told_steps = []
    while form.finished_at is None:
        opened = [step.name for step, state in form.items() if state.state == "open"]
        assert opened, "it hangs"
        step = data.draw(st.sampled_from(opened))
        form = end(form, step, data.draw(st.sampled_from(sorted(END_STATES))))
        told_steps.append(step)
        now_ended = [one.name for one, state in form.items() if state.state in END_STATES]
        assert set(ended) <= set(now_ended)
        ended = now_ended
    final = states(form)
    assert set(final) == set(graph)
    assert len(told_steps) == len(set(told_steps))
    for name, conditions in graph.items():
        may_run = all(final[condition.step] in MEETS[condition.when] for condition in conditions)
        assert (name in told_steps) == may_run
        if not may_run:
            assert final[name] == "skipped"
    if "final" in told_steps:
        assert told_steps[-1] == "final"
    assert form.outcome == ("failed" if {"failed", "cancelled"} & set(final.values()) else "succeeded")
    # Each step that ran was opened by exactly one end, or by the beginning.
    by = [one.name for parent in ["", *graph] for one in opened_by(form, parent)]
    assert sorted(by) == sorted(told_steps)


@given(graphs(), st.data())
def test_whatever_order_the_steps_are_written_in_a_circle_is_found_and_no_other_workflow_is_refused(
    graph: dict[str, list[Condition]], data: st.DataObject
) -> None:
    names = [name for name in graph if name != "final"]
    late, early = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(names))
    reach = {late}
    while more := {c.step for name in reach for c in graph[name]} - reach:
        reach |= more
    # A way leads from *late* back to *early*; so if *early* comes after *late*, that is a circle.
    closes = early in reach
    changed = {**graph, early: [*graph[early], on_complete(late)]}
    if closes:
        with pytest.raises(CycleError) as caught:
            form_of(**changed)
        circle = caught.value.steps
        assert circle[0] == circle[-1]
        for before, after in pairwise(circle):
            assert before in {condition.step for condition in changed[after]}
    else:
        assert form_of(**changed).finished_at is None


def test_a_step_is_not_kept_longer_than_it_is_needed() -> None:
    form = end(form_of(a=(), b="a"), "a")
    assert [step.body for step in form.steps] == [b"", b"body"]
    assert replace(form.steps[0], body=b"body") == form_of(a=(), b="a").steps[0]
