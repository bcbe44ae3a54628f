"""Build hook that adds man pages and shell completions to the wheel."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_PATHS: Final = {
    "bash": "share/bash-completion/completions/{}",
    "zsh": "share/zsh/site-functions/_{}",
    "fish": "share/fish/vendor_completions.d/{}.fish",
}


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg] # of no configuration
    """Generates them from the commands of the tree that is built; none is in git."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the files, and register their paths below the installation prefix."""
        if version != "standard":
            # Skipped for editable installations, which are frequent: it takes time.
            return
        self._directory = TemporaryDirectory()
        for number, (path, text) in enumerate(self._generate().items()):
            source = Path(self._directory.name, str(number))
            source.write_text(text, "ascii")
            build_data["shared_data"][str(source)] = path

    def finalize(self, version: str, *_: object) -> None:
        """Remove the temporary files."""
        if version == "standard":
            self._directory.cleanup()

    def _generate(self) -> dict[str, str]:
        sys.path.insert(0, self.root)
        try:
            from aoe.common.completion import completion_script
            from initiator.cli.main import cli as aoe
            from scripts.manpages import pages
            from target.cli.main import cli as aoe_target
        finally:
            sys.path.remove(self.root)
        texts = {
            f"share/man/man{page.section}/{page.file_name}": str(page)
            for page in pages()
        }
        for program, cli in (("aoe", aoe), ("aoe-target", aoe_target)):
            for shell, path in _PATHS.items():
                script = completion_script(cli, program, shell)
                texts[path.format(program)] = script
        return texts
