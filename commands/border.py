"""The border between the commands and the shell: registration, failures as messages, exit statuses.

Exit status: 0 done, 1 failed, 2 bad usage or config, 130 interrupted. ``SAECACHE_DEBUG=1`` in the environment
shows the stack trace of every failure.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from functools import wraps
from pathlib import Path
from typing import Any

import typer

from ..common.errors import SaecacheError
from ..common.printable import printable, shortened
from ..distributed.environment import find_placement
from .escaping import escaped_output

DEBUG_VARIABLE = "SAECACHE_DEBUG"
RESUMES = "interrupted; what was done is saved: the same command continues"
INTERRUPTED_STATUS = 130  # the exit status
STARTS_AGAIN = "interrupted; nothing was saved: the same command starts again"

_LIBRARIES = {  # the package that an error's class is from -> what a user calls it
    "huggingface_hub": "the Hugging Face hub",
    "httpx": "the network",
    "httpx2": "the network",
    "obstore": "object storage",
    "pydantic_core": "the settings",
    "requests": "the network",
    "safetensors": "safetensors",
    "safetensors_rust": "safetensors",
    "tokenizers": "the tokenizer",
    "yaml": "YAML",
}
_interrupted = False


def add_command(
    group: typer.Typer,
    name: str,
    function: Callable[..., None],
    *,
    interrupted: str = STARTS_AGAIN,
    several: bool = False,
) -> None:
    """Register ``function`` as the command ``name``; its failures end as one message and an exit status.

    Args:
        interrupted: the message after Ctrl-C or SIGTERM.
        several: the command can run in several processes that torchrun or srun starts.
    """

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            with escaped_output(), _with_others() if several else nullcontext():
                function(*args, **kwargs)
        except typer.Exit:
            raise
        except BrokenPipeError:  # the reader of our output went away, as in "| head"
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except BaseException as error:
            if debugging():
                raise
            # A signal during an import can surface as any error of the half-imported library.
            if _interrupted or isinstance(error, KeyboardInterrupt):
                typer.echo(interrupted, err=True)
                raise typer.Exit(INTERRUPTED_STATUS) from None
            told = message_of(error)
            if told is None:
                raise
            if type(error).__name__ != "OtherProcessError":  # the other process says it
                typer.echo(f"error{_of_process()}: {told}", err=True)
            raise typer.Exit(getattr(error, "exit_status", 1)) from None

    guarded.interrupted = interrupted  # type: ignore[attr-defined]  # for the test of the table
    group.command(name)(guarded)


@contextmanager
def _with_others() -> Iterator[None]:
    """Meet the processes that were started with this one. All but the first print failures only."""
    placement = find_placement()
    if placement is None:
        yield
        return
    from ..distributed import join_world
    from ..distributed.errors import OtherProcessError

    with ExitStack() as quiet:
        if placement[0] > 0:
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(logging.Formatter(f"process {placement[0]}: %(message)s"))
            handler.setLevel(logging.WARNING)
            logging.getLogger().addHandler(handler)
            nowhere = quiet.enter_context(Path(os.devnull).open("w"))
            quiet.enter_context(redirect_stdout(nowhere))
            quiet.enter_context(redirect_stderr(nowhere))
        world = quiet.enter_context(join_world())
        try:
            yield
        except Exception as error:
            status = getattr(error, "exit_status", 1)
            if not debugging() and (told := message_of(error)) is not None:
                speaker = world.who_says(told)
                if speaker != world.rank:
                    raise OtherProcessError(speaker, status, told) from error
            raise


def _of_process() -> str:
    """Which of several processes this one is, for messages."""
    placement = find_placement()
    return "" if placement is None else f" in process {placement[0]}"


def debugging() -> bool:
    """Whether the user asked for stack traces."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def message_of(error: BaseException) -> str | None:
    """What to tell the user of ``error``; None for what can only be a bug, whose stack trace is wanted.

    It may quote the files of others: what would control the terminal is escaped.
    """
    text = _words_of(error)
    return None if text is None else shortened(printable(text, keep="\n"))


def _words_of(error: BaseException) -> str | None:
    text = str(error).strip()
    if isinstance(error, SaecacheError):
        return text
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError):
        from ..store.disk_space import is_full

        if is_full(error):
            return f"the disk is full ({error.strerror}): make room, then run the same command again"
        return text or type(error).__name__
    if isinstance(error, UnicodeDecodeError):
        return f"a file is not UTF-8 text: {text}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            f"out of memory: take fewer rows or sequences at a time, or fewer latents ({text or 'no memory'})"
        )
    for kind in type(error).__mro__:
        library = kind.__module__.partition(".")[0]
        if library in _LIBRARIES or kind.__name__ == "SafetensorError":
            return f"{_LIBRARIES.get(library, 'safetensors')}: {text}"
    if type(error) is Exception:  # how libraries written in Rust (tokenizers) report a bad file
        return f"{text} ({DEBUG_VARIABLE}=1 shows where)"
    return None


def note_interrupts() -> None:
    """Let SIGTERM do what Ctrl-C does, and remember both, whatever a library makes of the KeyboardInterrupt.

    A job that is preempted while it still loads so ends with the status that says: run it again.
    """

    def on_interrupt(number: int, frame: Any) -> None:
        global _interrupted
        _interrupted = True
        signal.default_int_handler(number, frame)

    for which in (signal.SIGINT, signal.SIGTERM):
        signal.signal(which, on_interrupt)


def end_at_once() -> None:
    """End an interrupted process with its exit status.

    Threads may still be at work (transfers, hashing), and one that writes while Python shuts down aborts the
    process: the shell would see SIGABRT. What holds files and locks was left by exceptions before.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(INTERRUPTED_STATUS)
