"""The submission's side: run its cells, then answer calls of its functions. Runs inside the sandbox.

Nothing here is trusted once the first cell has run: a submission may replace whatever it likes in its own process. It
changes what it answers by that, and right answers are all that counts.
"""

import io
import os
import socket
import sys
import traceback
import types
from typing import Any

from grading.wire import Code, Handle, WireError, decode, encode, receive, send

MAX_TEXT = 20_000  # characters kept of a cell's printed output
PATIENCE = 24 * 3600.0  # s without a message; the trusted side ends the process long before


class _Printed(io.TextIOBase):
    """Keeps the beginning of what is printed, and drops the rest."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.length = 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.length < MAX_TEXT:
            self.parts.append(text[: MAX_TEXT - self.length])
        self.length += len(text)
        return len(text)

    def take(self) -> str:
        text, more = "".join(self.parts), self.length - MAX_TEXT
        self.parts, self.length = [], 0
        return f"{text}\n… and {more:,} characters more" if more > 0 else text


def serve(channel: socket.socket) -> None:
    """Answer messages until the channel is closed."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    class Shell(InteractiveShell):
        """Magics, `display` and input transformers work as in a notebook; windows and programs there are none."""

        def enable_gui(self, gui: object = None) -> None:
            pass

        def system(self, cmd: str) -> None:
            print(f"(not run here: {cmd})")

        system_piped = system_raw = system

    quiet = Config()
    quiet.HistoryManager.enabled = False
    quiet.InteractiveShell.colors = "nocolor"
    printed = _Printed()
    sys.stdout = sys.stderr = printed  # type: ignore[assignment]
    sys.stdin = io.StringIO()
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module  # classes of the notebook belong to it
    shell = Shell.instance(config=quiet, user_module=module)
    kept: dict[int, Any] = {}

    def keep(value: Any) -> Handle:
        kept[len(kept)] = value
        return Handle(len(kept) - 1, type(value).__name__)

    def resolve(value: Any) -> Any:
        if isinstance(value, Handle):
            return kept[value.number]
        if isinstance(value, Code):
            import torch

            return eval(value.source, {"torch": torch})
        if isinstance(value, list | tuple):
            return type(value)(map(resolve, value))
        if isinstance(value, dict):
            return {key: resolve(item) for key, item in value.items()}
        return value

    def look_up(target: Any, path: str) -> Any:
        """A global of the notebook (target None) or what was kept, then attributes along a dotted path."""
        names = [name for name in path.split(".") if name]
        if target is None:
            found, names = shell.user_ns[names[0]], names[1:]
        else:
            found = resolve(target)
        for name in names:
            found = getattr(found, name)
        return found

    def answer(message: dict[str, Any]) -> Any:
        match message["do"]:
            case "run":
                result = shell.run_cell(message["source"], store_history=False)
                error = result.error_before_exec or result.error_in_exec
                said = f"{type(error).__name__}: {error}"[:2000] if error is not None else None
                return {"error": said, "printed": printed.take()}
            case "names":
                return [name for name in message["names"] if name in shell.user_ns]
            case "get":
                return look_up(message["target"], message["path"])
            case "call":
                function = look_up(message["target"], message["path"])
                return function(*resolve(message["args"]), **resolve(message["kwargs"]))
            case "evaluate":
                scope = {**shell.user_ns, "torch": sys.modules["torch"], **resolve(message["values"])}
                exec(message["source"], scope)
                return scope["result"]

    while True:
        try:
            message = decode(receive(channel, PATIENCE))
        except WireError:
            os._exit(0)
        try:
            reply = encode({"answer": answer(message)}, keep)
        except BaseException as error:  # SystemExit and KeyboardInterrupt too: the next call comes
            lines = traceback.extract_tb(error.__traceback__)
            where = f" (line {lines[-1].lineno} of {lines[-1].name})" if len(lines) > 2 else ""
            reply = encode({"error": f"{type(error).__name__}: {error}{where}"[:2000]})
        send(channel, reply, PATIENCE)
