"""One exit code for each class of failure."""

from __future__ import annotations

import json

import pytest

from agent import errors
from agent.ctl import failures
from agent.ctl.exits import BY_CODE, MEANING, Exit, exit_of
from agent.ctl.failures import report, wants_json
from agent.errors import AgentError, FieldViolation, InvalidArgument


def classes() -> list[type[AgentError]]:
    """The classes of both modules, those that one imports from the other once."""
    found = [value for module in (errors, failures) for value in vars(module).values()]
    return sorted({kind for kind in found if isinstance(kind, type) and issubclass(kind, AgentError)}, key=str)


@pytest.mark.parametrize("kind", classes())
def test_every_error_has_an_exit_code(kind: type[AgentError]) -> None:
    assert kind.code in BY_CODE


def test_every_exit_code_is_explained() -> None:
    assert list(MEANING) == list(Exit)


def test_an_error_of_a_newer_daemon_is_unexpected() -> None:
    class Newer(AgentError):
        code = "something_new"

    assert exit_of(Newer("?")) is Exit.UNEXPECTED


def test_an_error_is_told_with_its_violations_and_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    violations = (FieldViolation("limits.max_model_len", "must be at least 16 (got 3)"),)
    code = report(
        InvalidArgument("the spec is not valid", violations=violations, hint="see the reference"), as_json=False
    )
    assert code is Exit.USAGE
    assert capsys.readouterr().err.splitlines() == [
        "error: the spec is not valid",
        "  limits.max_model_len: must be at least 16 (got 3)",
        "hint: see the reference",
    ]


def test_a_rule_that_is_the_message_is_not_told_twice(capsys: pytest.CaptureFixture[str]) -> None:
    for message in ("a.b: must", "a.b must"):
        report(InvalidArgument(message, violations=(FieldViolation("a.b", "must"),)), as_json=False)
        assert capsys.readouterr().err == f"error: {message}\n"


def test_an_error_as_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    report(InvalidArgument("no", violations=(FieldViolation("a.b", "must"),)), as_json=True)
    assert json.loads(capsys.readouterr().err)["error"] == {
        "code": "invalid_argument",
        "exit": 2,
        "message": "no",
        "violations": [{"field": "a.b", "rule": "must"}],
        "hint": "",
    }


@pytest.mark.parametrize(
    ("words", "wanted"),
    [("status -o json", True), ("-ojson", True), ("get --output=json x", True), ("status -o yaml", False),
     ("logs json -o", False), ("logs -- -o json", False), ("", False)],
)  # fmt: skip
def test_json_is_wanted_as_the_command_line_says(words: str, wanted: bool) -> None:
    assert wants_json(words.split()) is wanted
