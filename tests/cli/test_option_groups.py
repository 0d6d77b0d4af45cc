"""``takes``: the fields of a dataclass are options of a command."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from fastprobe.cli.option_groups import takes


@dataclass(frozen=True)
class Size:
    name: Annotated[str, typer.Argument(help="A name.")] = "square"
    width: Annotated[int, typer.Option(help="Width in points.")] = 1
    height: Annotated[int, typer.Option("--height", "-h", help="Height in points.")] = 2


@pytest.fixture
def call():
    """A command with the options of ``Size`` and one of its own, and what it gets."""
    app, got = typer.Typer(), []

    @app.command()
    @takes(Size, width=10)
    def draw(size: Size, context: typer.Context, colour: str = "black") -> None:
        """Draw something."""
        got.append((size, colour, context.get_parameter_source("width").name))

    def call(*arguments):
        result = CliRunner().invoke(app, arguments)
        return result, got

    return call


def test_a_command_gets_one_object_with_its_own_defaults(call):
    result, got = call()

    assert result.exit_code == 0
    assert got == [(Size("square", 10, 2), "black", "DEFAULT")]


def test_options_set_fields_and_reach_the_command(call):
    _, got = call("circle", "--width", "3", "-h", "4", "--colour", "red")

    assert got == [(Size("circle", 3, 4), "red", "COMMANDLINE")]


def test_help_shows_the_fields_before_the_options_of_the_command(call):
    result, _ = call("--help")

    assert "Draw something." in result.stdout
    assert result.stdout.index("Width in points.") < result.stdout.index("Height in points.")
    assert result.stdout.index("Height in points.") < result.stdout.index("--colour")
