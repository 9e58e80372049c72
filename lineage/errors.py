"""What can go wrong, said once: each error names the file, the field and the fix, and carries its exit code."""

import sys
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Self

from lineage.garbage import collect_seldom, end_uncollected


class ExitCode(IntEnum):
    """The documented exit codes of `goldpath` and of every stage command."""

    OK = 0
    ERROR = 1
    BAD_INPUT = 2
    GATE_FAILED = 3
    AWAITING_APPROVAL = 4
    ROLLED_BACK = 5
    TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: the same command continues


class GoldpathError(Exception):
    """An error that a person can act on. Its text is all that the person sees: never a traceback."""

    exit_code = ExitCode.ERROR
    is_shared = False  # every process of a run meets it at the same point, so they can end together

    def met_together(self) -> Self:
        """Returns the error, marked as one that every process of the run meets."""
        self.is_shared = True
        return self


class BadInput(GoldpathError):
    """Something that the user gave is wrong.

    Args:
        where: the file (or command-line option) that is at fault.
        field: the field, line or entry in it; "" where the file as a whole is at fault.
        problem: what is wrong, in one phrase.
        fix: what to do next, in one phrase.
    """

    exit_code = ExitCode.BAD_INPUT

    def __init__(self, where: str | Path, field: str, problem: str, fix: str) -> None:
        self.where, self.field, self.problem, self.fix = str(where), field, problem, fix
        place = f"{where}: {field}" if field else f"{where}"
        super().__init__(f"{place}: {problem}. Fix: {fix}")


class Tampered(BadInput):
    """Bytes on disk are not the bytes that a record or a manifest vouches for."""


def run_cli(main: Callable[[], int | None]) -> None:
    """Runs a command's `main` and exits with its code; a `GoldpathError` becomes one line on stderr, Ctrl-C exits 130."""
    collect_seldom()
    try:
        code = main()
    except GoldpathError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(int(error.exit_code))
    except (OSError, UnicodeError) as error:  # a full disk, a lost connection, an argument that is no text
        print(f"error: {type(error).__name__}: {error}. Fix: mend that, then run the same command again", file=sys.stderr)
        sys.exit(int(ExitCode.ERROR))
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    finally:
        end_uncollected()
    sys.exit(int(code or 0))
