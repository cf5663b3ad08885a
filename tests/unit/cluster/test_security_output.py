"""What commands print: no secrets, and nothing that a terminal would obey."""

from __future__ import annotations

import pytest
from labelmesh.cluster.output import explain, print_facts, printable


def _raised(message: str) -> ValueError:
    try:
        raise RuntimeError(message)
    except RuntimeError as error:
        return error  # type: ignore[return-value]


def test_error_and_its_trace_show_no_credentials(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    error = RuntimeError("s3://AKIA:pa55word@bucket/x: wJalrXUtnFEMI was refused")
    assert explain(error) == 1
    shown = capsys.readouterr().err
    assert "pa55word" not in shown
    assert "wJalrXUtnFEMI" not in shown
    assert shown.endswith("the run failed: s3://***@bucket/x: *** was refused\n")


def test_trace_shows_no_credentials(capsys: pytest.CaptureFixture[str]) -> None:
    explain(_raised("https://user:pa55word@host/x"))
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "pa55word" not in shown


@pytest.mark.parametrize("name", ["\x1b]0;title\x07", "\x9b2J", "a\rb", "\u202etxt.exe", "\x1bc"])
def test_names_cannot_steer_the_terminal(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_facts({"classes": [name]})
    explain(ValueError(f"no class {name}"))
    both = "".join(capsys.readouterr())
    assert not set(both) & set("\x1b\x07\x9b\r\u202e")


def test_text_of_all_languages_and_colors_stay() -> None:
    text = "Käse 猫 \x1b[36mray\x1b[0m\n\ttab"
    assert printable(text) == text
