"""What the README shows runs as written."""

import re
from pathlib import Path

import pytest
import torch

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL_LINES = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


def test_readme_has_examples() -> None:
    assert len(PYTHON_BLOCKS) >= 2
    assert {"make demo", "make test"} <= set(SHELL_LINES)


@pytest.mark.parametrize("code", PYTHON_BLOCKS)
def test_python_example_runs(code: str) -> None:
    for module in ("safetensors", "soundfile"):
        pytest.importorskip(module)
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("line", [line for line in SHELL_LINES if line.startswith("dyncp ")])
def test_command_line_example_names_real_commands_and_options(line: str) -> None:
    typer = pytest.importorskip("typer")
    from dyncp_kernels.cli import build_app

    words = line.split()
    command = typer.main.get_command(build_app()).commands[words[1]]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words[2:] if word.startswith("-")} <= options


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_linked_file_exists(target: str) -> None:
    assert (Path(__file__).resolve().parent.parent / target).exists()
