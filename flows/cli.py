"""The `goldpath` command. Each command parses, calls one room, and prints: data on stdout, progress on stderr."""

import sys
from contextlib import redirect_stdout
from pathlib import Path

import click

from flows.command import as_json, emit, settings
from flows.data_commands import data
from lineage.errors import BadInput, ExitCode, run_cli
from lineage.privacy import switch_off_telemetry

EXIT_CODES = "Exit codes: 0 ok · 1 error · 2 bad input · 3 gate failed · 4 awaiting approval · 5 rolled back."


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="goldpath")
def cli() -> None:
    """Goldpath takes a language model from raw text to a promoted endpoint.

    State lives under GOLDPATH_HOME (default: .goldpath). `goldpath demo` shows the whole path.
    """
    switch_off_telemetry()
    # stdout is for data alone: what libraries print (MLflow prints links) goes where progress goes.
    click.get_current_context().with_resource(redirect_stdout(sys.stderr))


cli.add_command(data)


@cli.command()
@as_json
def demo(as_json: bool) -> int:
    """Show the whole path on the Python standard library, in three acts."""
    from flows.demo import run_demo, summary_table

    return emit(run_demo(settings()), as_json, summary_table)


@cli.command()
@click.argument("recipe")
@click.option("--version", help="Take this version instead of the recipe's.")
@click.option("--calibrate", is_flag=True, help="Train each stage's model for a few steps first, and remember its speed.")
@as_json
def plan(recipe: str, version: str | None, calibrate: bool, as_json: bool) -> int:
    """Say what RECIPE would run and reuse: its memory, time and cost, and what to change where it does not fit.

    Nothing is built. A recipe that would be refused is refused here, with exit code 2; one that does not fit into this
    machine is a warning, as it may be run on another. Where the data is built already, its rows are counted.
    """
    from flows.views import plan_table, plan_view

    return emit(plan_view(settings(), recipe, version, calibrate), as_json, plan_table)


@cli.command()
@click.argument("recipe")
@click.option("--version", help="Take this version instead of the recipe's.")
@click.option(
    "--only", metavar="STAGE", help="Run this stage alone; those before it must have finished. `gate` compares afresh."
)
@click.option(
    "--allow-change",
    multiple=True,
    metavar="FIELD",
    help="Continue checkpoints although this field, section or input changed, such as training.learning_rate or data.",
)
@as_json
def run(recipe: str, version: str | None, only: str | None, allow_change: tuple[str, ...], as_json: bool) -> int:
    """Run RECIPE: data, training, evaluation gate, registration. A killed run continues with the same command."""
    from flows.run import run_build
    from flows.views import build_table

    result = run_build(settings(), recipe, version, only, allow_change)
    emit(result, as_json, build_table)
    return ExitCode.OK if result["verdict"] in ("pass", None) else ExitCode.GATE_FAILED


@cli.command()
@as_json
def models(as_json: bool) -> int:
    """List every registered version: its state, digest and gate verdict."""
    from flows.views import models_table, models_view

    return emit(models_view(settings()), as_json, models_table)


@cli.command()
@click.argument("address", metavar="NAME@VERSION")
@as_json
def show(address: str, as_json: bool) -> int:
    """Show one version: its story, its figures, and its lineage down to data version and commit. Verifies every record."""
    from flows.views import lineage_table, lineage_view

    return emit(lineage_view(settings(), address), as_json, lineage_table)


@cli.command()
@click.argument("run", metavar="NAME@VERSION|DIR")
@click.option("--verify", is_flag=True, help="Read every byte and compare it with the checkpoint's manifest.")
@as_json
def checkpoints(run: str, verify: bool, as_json: bool) -> int:
    """List a run's checkpoints, or those of one stage's folder. Exits with 1 where one is damaged."""
    from flows.checkpoints import checkpoints_table, checkpoints_view

    view = checkpoints_view(settings(), run, verify)
    emit(view, as_json, checkpoints_table)
    return ExitCode.ERROR if any(row["problem"] for row in view["checkpoints"]) else ExitCode.OK


@cli.command()
@click.argument("model", metavar="NAME@VERSION|DIR")
@click.option("--suite", default="fast", show_default=True, help="A suite's name or file.")
@click.option("--golden", type=click.Path(path_type=Path), help="A folder with golden/ (default: the version's own).")
@as_json
def evaluate(model: str, suite: str, golden: Path | None, as_json: bool) -> int:
    """Score a version, or any bundle folder, on the golden sets."""
    from flows.run import run_evaluation
    from flows.views import scores_table

    return emit(run_evaluation(settings(), model, suite, golden), as_json, scores_table)


@cli.command()
@click.argument("address", metavar="NAME@VERSION")
@click.option("--as", "user", required=True, help="Who approves; not the person who registered it.")
@click.option("--reason", required=True, help="Why; kept in the ledger.")
@as_json
def approve(address: str, user: str, reason: str, as_json: bool) -> int:
    """Approve a candidate whose gate passed. The approval is bound to the exact bytes."""
    return _decide_on(address, "approve", user, reason, as_json)


@cli.command()
@click.argument("address", metavar="NAME@VERSION")
@click.option("--as", "user", required=True, help="Who rejects.")
@click.option("--reason", required=True, help="Why; kept in the ledger.")
@as_json
def reject(address: str, user: str, reason: str, as_json: bool) -> int:
    """Reject a candidate for good."""
    return _decide_on(address, "reject", user, reason, as_json)


@cli.command()
@click.argument("address", metavar="NAME@VERSION")
@as_json
def release(address: str, as_json: bool) -> int:
    """Take an approved candidate through its canary: champion, or rolled back."""
    from flows.run import run_release
    from flows.views import release_table

    result = run_release(settings(), address)
    emit(result, as_json, release_table)
    return int(result["exit_code"])


@cli.command()
@click.argument("name")
@click.option("--as", "user", envvar="USER", default="operator", help="Who rolls back (default: $USER).")
@click.option("--reason", default="rolled back by hand", show_default=True, help="Why; kept in the ledger.")
@as_json
def rollback(name: str, user: str, reason: str, as_json: bool) -> int:
    """Make NAME's previous champion the champion again, at once."""
    from flows.release import roll_back
    from flows.views import release_table

    return emit(roll_back(settings(), name, user, reason), as_json, release_table)


@cli.command()
@click.argument("model", metavar="NAME@VERSION|DIR")
@click.option("--port", default=8000, show_default=True, help="Port on 127.0.0.1; 0 takes a free one.")
@click.option("--json", is_flag=True, expose_value=False, help="Accepted; the line on stdout is JSON anyway.")
def serve(model: str, port: int) -> int:
    """Serve one version, or any bundle folder, on an OpenAI-compatible endpoint (no gateway, no canary).

    Prints one line of JSON with its URL when it is ready.
    """
    from flows.run import serve_bundle

    return serve_bundle(settings(), model, port)


@cli.command()
@as_json
def up(as_json: bool) -> int:
    """Start Prefect server, MLflow server, worker and gateway on 127.0.0.1; one status screen; Ctrl-C stops all."""
    from flows.up import run_up

    with redirect_stdout(sys.__stdout__):  # its screen is its data
        return run_up(settings(), started=(lambda urls: emit(urls, True, str)) if as_json else None)


@cli.command()
@as_json
def doctor(as_json: bool) -> int:
    """Check this machine and this GOLDPATH_HOME: what is wrong, and the command that mends it."""
    from flows.doctor import checks_table, run_checks

    checks = run_checks(settings())
    emit(checks, as_json, checks_table)
    return ExitCode.ERROR if any(check["state"] == "fail" for check in checks) else ExitCode.OK


def main() -> None:
    """Entry point: usage errors exit 2 like any other bad input, errors print one line, Ctrl-C exits 130."""

    def call() -> int:
        try:
            return int(cli.main(prog_name="goldpath", standalone_mode=False) or 0)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show(sys.stderr)
            return ExitCode.BAD_INPUT
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "goldpath"
            raise BadInput(command, "", error.format_message().rstrip(".?"), f"see `{command} --help`") from None
        except click.Abort:
            raise KeyboardInterrupt from None

    run_cli(call)


def _decide_on(address: str, verb: str, user: str, reason: str, as_json: bool) -> int:
    from flows.release import decide_on
    from flows.views import release_table

    return emit(decide_on(settings(), address, verb, user, reason), as_json, release_table)


if __name__ == "__main__":
    main()
