"""python -m pinnkfac resume RUN_FOLDER [overrides]"""

from __future__ import annotations

from pathlib import Path

from pinnkfac.common.errors import UserError

HELP = """usage: python -m pinnkfac resume RUN_FOLDER [KEY=VALUE ...]

Go on with a run that was stopped or has ended, in its folder. Without overrides it goes on bit for
bit. KEY=VALUE changes the configuration: stop.seconds and stop.steps count from the beginning of
the run; another step starts with the net as it is; problem=FILE.py takes a changed PDE file.
The PDE file that the folder names is run; nothing else in the folder is.

examples:
  python -m pinnkfac resume outputs/heat1d/2026-01-31_12-00-00
  python -m pinnkfac resume my_run stop.seconds=600 step=kfac"""


def main(arguments: list[str]) -> int:
    if any(a in ("-h", "--help") for a in arguments):
        print(HELP)
        return 0
    folders = [a for a in arguments if "=" not in a or Path(a).is_dir()]
    if len(folders) != 1 or folders[0].startswith("-"):
        raise UserError(
            f"resume: {'no folder was' if not folders else ' '.join(folders) + ' was'} given: name "
            "one RUN_FOLDER, as solve printed it"
        )
    overrides = [a for a in arguments if a not in folders]

    from pinnkfac.commands.solve import exit_code
    from pinnkfac.common.memory import keep_freed_memory
    from pinnkfac.run.resuming import resume

    keep_freed_memory()
    return exit_code(resume(folders[0], *overrides))
