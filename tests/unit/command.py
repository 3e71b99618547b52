"""The command line, run in the process of a test."""

import sys

import pytest

from crosspipe_ray.cli import main


class Command:
    """Runs ``crosspipe`` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str) -> str:
        """Its output; it must succeed."""
        code, out, err = self.run(*arguments)
        assert code == 0, err
        return out

    def fails(self, *arguments: str) -> tuple[int, str]:
        """Its exit code and message; the message is one line, and stdout stays empty."""
        code, out, err = self.run(*arguments)
        assert out == ""
        return code, err

    def run(self, *arguments: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["crosspipe", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = self._capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err
