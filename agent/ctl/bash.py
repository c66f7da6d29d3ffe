"""Completion in bash, which takes words apart at `:` and `=`. Imported when a shell asks, not by each command."""

from __future__ import annotations

from typing import Any

from click.shell_completion import BashComplete, CompletionItem, add_completion_class


class Bash(BashComplete):
    """Bash takes `qwen3:14` and `--for=re` apart at `:` and `=`, and replaces only what is behind the last of them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._stays = ""  # the part of the last word that bash leaves as it is

    def get_completion_args(self) -> tuple[list[str], str]:
        args, last = super().get_completion_args()
        words: list[str] = []
        for word in (*args, last):
            breaks = (":", "=") if words and words[-1].startswith("--") else (":",)
            if words and word and (word in breaks or words[-1].endswith(breaks)):
                words[-1] += word
            else:
                words.append(word)
        if words[-1] != last:
            self._stays = words[-1][: words[-1].rfind(":") + 1]
        return words[:-1], words[-1]

    def format_completion(self, item: CompletionItem[Any]) -> str:
        return f"{item.type},{item.value.removeprefix(self._stays)}"


add_completion_class(Bash)
