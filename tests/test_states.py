"""The law of task states."""

from __future__ import annotations

from functools import reduce

from hypothesis import given
from hypothesis import strategies as st
from support.tables import together

from kie_async.models import TASK_ID, TaskState, advance
from kie_async.wire.records import read_state

TERMINAL = frozenset({TaskState.SUCCESS, TaskState.FAIL})

STATES = st.sampled_from(TaskState)
ORDER = list(TaskState)


@together(
    ("word", "state"),
    [
        ("waiting", TaskState.WAITING),
        ("queuing", TaskState.QUEUING),
        ("generating", TaskState.GENERATING),
        ("success", TaskState.SUCCESS),
        ("fail", TaskState.FAIL),
    ],
)
def test_the_five_words_of_the_service_are_known(word: str, state: TaskState) -> None:
    assert read_state(word) is state


@together("word", ["SUCCESS", "Success", " success ", "success\n"])
def test_case_and_blanks_do_not_matter(word: str) -> None:
    assert read_state(word) is TaskState.SUCCESS


@together("state", TaskState)
def test_a_state_prints_as_the_word_of_the_wire(state: TaskState) -> None:
    assert str(state) == state.value
    assert f"{state}" == state.value


@together("word", ["completed", "failed", "error", "cancelled", "timeout", "done", ""])
def test_an_unknown_word_counts_as_still_running(word: str) -> None:
    assert read_state(word) is TaskState.UNKNOWN
    assert not read_state(word).is_terminal


@together("word", [None, 1, True, 1.5, [], {}, ["success"], b"success"])
def test_what_is_no_word_counts_as_still_running(word: object) -> None:
    assert read_state(word) is TaskState.UNKNOWN


@together("state", TaskState)
def test_only_success_and_fail_are_terminal(state: TaskState) -> None:
    assert state.is_terminal == (state in {TaskState.SUCCESS, TaskState.FAIL})
    assert state.is_terminal == (state in TERMINAL)


@given(current=STATES, observed=STATES)
def test_advance_never_goes_back(current: TaskState, observed: TaskState) -> None:
    assert ORDER.index(advance(current, observed)) >= ORDER.index(current)


@given(current=st.sampled_from(sorted(TERMINAL)), observed=STATES)
def test_a_terminal_state_is_never_left(current: TaskState, observed: TaskState) -> None:
    assert advance(current, observed) is current


@given(current=STATES, observed=STATES)
def test_advance_returns_one_of_the_two(current: TaskState, observed: TaskState) -> None:
    assert advance(current, observed) in {current, observed}


@given(seen=st.lists(STATES, max_size=20))
def test_the_first_terminal_state_of_any_history_stands(seen: list[TaskState]) -> None:
    terminal = [state for state in seen if state.is_terminal]
    last = reduce(advance, seen, TaskState.UNKNOWN)
    assert last is (terminal[0] if terminal else max(seen, key=ORDER.index, default=TaskState.UNKNOWN))


def test_a_stale_replica_moves_nothing_back() -> None:
    assert advance(TaskState.SUCCESS, TaskState.GENERATING) is TaskState.SUCCESS
    assert advance(TaskState.GENERATING, TaskState.WAITING) is TaskState.GENERATING


@given(word=st.text(max_size=40))
def test_any_text_reads_as_some_state(word: str) -> None:
    assert isinstance(read_state(word), TaskState)


@together(
    "task_id", ["a", "e989621f54392584b05867f87b160672", "task_kling_1765185996677", "A-b_9", "x" * 128]
)
def test_an_id_of_the_service_is_well_formed(task_id: str) -> None:
    assert TASK_ID.fullmatch(task_id)


@together(
    "task_id", ["", "x" * 129, "a.b", "../../x?y", "a b", "a\n", "a/b", "a%2f", "é", "１", "a&taskId=b"]
)
def test_what_could_change_a_url_or_a_signature_is_no_id(task_id: str) -> None:
    assert not TASK_ID.fullmatch(task_id)
