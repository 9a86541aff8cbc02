"""How errors and exit codes come out."""

from typing import Any

import typer
from typer.core import TyperCommand

from .checking import check_options

FAILED, ROWS_SKIPPED, STOPPED = 2, 3, 130


class Command(TyperCommand):
    """A command that checks its options first, and whose errors are one line on standard error."""

    def invoke(self, ctx: Any) -> Any:
        """Run it; see the exit codes in the help of `magnet`."""
        try:
            check_options(ctx.params)
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt as stop:
            typer.echo("magnet: stopped", err=True)
            raise typer.Exit(STOPPED) from stop
        except Exception as error:
            if ctx.find_root().params["debug"]:
                raise
            text = " ".join(str(error).split()) or type(error).__name__
            typer.echo(f"magnet: {text}", err=True)
            raise typer.Exit(FAILED) from error
