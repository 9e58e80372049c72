"""What a process says to torchrun when it fails, and what its successors after a restart make of it.

torchrun gives every process a file for its error (TORCHELASTIC_ERROR_FILE, `…/attempt_2/RANK/error.json`) and starts all
processes again when one fails, whatever the reason: it sees only that an exit code is not 0. So an error that would only
come again is marked as final, and the processes of the next attempt end with it at once.
"""

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from lineage.errors import ExitCode, GoldpathError
from lineage.files import write_atomic

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
ATTEMPT = "attempt_"
SAID = "said"  # beside the folders of an attempt's ranks: one of them has told the person


@dataclass(frozen=True)
class LastWord:
    """Why a process ended, in the fields that torchrun reads (`message`, `timestamp`) and some of our own.

    Attributes:
        message: the error, as the person sees it.
        timestamp: seconds since 1970.
        exit_code: of the process.
        rank: of the process.
        is_final: the same error would come again.
    """

    message: str
    timestamp: int
    exit_code: int
    rank: int
    is_final: bool


def leave_word(error: BaseException, exit_code: int) -> None:
    """Writes why this process ends into the file that torchrun named; without torchrun there is none."""
    path = os.environ.get(ERROR_FILE)
    if path:
        is_final = isinstance(error, GoldpathError) and exit_code != ExitCode.TRY_AGAIN
        _write(Path(path), LastWord(str(error), int(time.time()), exit_code, int(os.environ.get("RANK", "0")), is_final))


def may_speak() -> bool:
    """Whether this process is the first of its node's that asks: what all meet before they have met is said once."""
    if ERROR_FILE not in os.environ:
        return True
    try:
        (_attempt_folder(Path(os.environ[ERROR_FILE])) / SAID).touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # better twice than never
        return True
    return True


def was_said(error_file: Path) -> bool:
    """Whether a process of the attempt that an error file belongs to was the one to speak (`may_speak`)."""
    return (_attempt_folder(error_file) / SAID).exists()


def read_word(path: Path) -> LastWord | None:
    """Returns what a process left; None where it left nothing that can be read."""
    with suppress(OSError, ValueError, TypeError):
        return LastWord(**json.loads(path.read_text(encoding="utf-8")))
    return None


def final_word() -> LastWord | None:
    """Returns the final error of this node's processes before the restart, and leaves it again; None where all is open."""
    path = Path(os.environ.get(ERROR_FILE, ""))
    attempt = _attempt_folder(path).name.removeprefix(ATTEMPT)
    if not attempt.isdigit():
        return None
    before = _attempt_folder(path).with_name(f"{ATTEMPT}{int(attempt) - 1}")
    words = [word for one in sorted(before.glob(f"*/{path.name}")) if (word := read_word(one)) and word.is_final]
    if not words:
        return None
    _write(path, words[0])
    if (before / SAID).exists():
        may_speak()
    return words[0]


def _attempt_folder(error_file: Path) -> Path:
    return error_file.parent.parent


def _write(path: Path, word: LastWord) -> None:
    with suppress(OSError):  # it was said on stderr too
        write_atomic(path, json.dumps(asdict(word)))
