"""python -m pinnkfac solve FILE.py|NAME [overrides] [-m]"""

from __future__ import annotations

import os
import sys

from pinnkfac.errors import UserError

HELP = """usage: python -m pinnkfac solve FILE.py|NAME [KEY=VALUE ...] [-m]

Solve the PDE of a file (FILE.py, or FILE.py:function) or a bundled one (NAME, see 'list').
KEY=VALUE overrides the configuration; pde.NAME=VALUE sets an argument of the PDE's function.
-m runs all combinations of comma-separated values. --cfg job prints the configuration.

examples:
  python -m pinnkfac solve poisson2d stop.seconds=20
  python -m pinnkfac solve heat1d pde.kappa=0.1 step=kfac_star net.widths=[32,32]
  python -m pinnkfac solve poisson2d -m step=kfac,adam seed=0,1"""


def main(arguments: list[str]) -> int:
    if any(a in ("-h", "--help") for a in arguments):
        print(HELP)
        return 0
    given = [a for a in arguments if not a.startswith("-") and "=" not in a and a != "job"]
    if len(given) != 1:
        what = "no PDE was named" if not given else f"{len(given)} PDEs were named ({given})"
        raise UserError(f"{what}: give one FILE.py or NAME, as in 'solve poisson2d'")
    # Hydra's parser wants its flags behind the overrides.
    overrides = [a for a in arguments if not a.startswith("-") and "=" in a]
    flags = [a for a in arguments if a != given[0] and a not in overrides]

    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from pinnkfac.configuration import CONFIG_NAME, config_folder, explain, opened, register
    from pinnkfac.loading import find
    from pinnkfac.memory import keep_freed_memory

    found = find(given[0])
    register(found.defaults)
    keep_freed_memory()
    failures: list[str] = []
    # Hydra reads the command line itself, and would print a traceback of its own.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    quoted = given[0].replace("'", "\\'")
    saved, sys.argv = sys.argv, [sys.argv[0], f"problem='{quoted}'", *opened(overrides), *flags]

    def job(config: object) -> None:
        message = _job(config, found)
        if message:
            failures.append(message)

    try:
        hydra.main(config_path=config_folder(), config_name=CONFIG_NAME, version_base="1.3")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    finally:
        sys.argv = saved
    if failures and not any(flag in ("-m", "--multirun") for flag in flags):
        raise UserError(failures[0])
    return 1 if failures else 0


def _job(config: object, found: object) -> str:
    """One run; returns the message of a user's mistake, so that a multirun goes on."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig, OmegaConf

    from pinnkfac.configuration import finish
    from pinnkfac.loading import PdeFile
    from pinnkfac.run_folder import RunFolder
    from pinnkfac.solving import solve_configured

    assert isinstance(config, DictConfig)
    assert isinstance(found, PdeFile)
    hydra_config = HydraConfig.get()
    try:
        problem = found.problem(OmegaConf.to_container(config.pde))  # type: ignore[arg-type]
        if hydra_config.mode == RunMode.MULTIRUN:
            print(f"job {hydra_config.job.num}: {hydra_config.job.override_dirname}", flush=True)
        folder = RunFolder(hydra_config.runtime.output_dir)
        solve_configured(finish(config), problem, found.name, folder)
    except UserError as error:
        if config.debug:
            raise
        if hydra_config.mode == RunMode.MULTIRUN:
            print(f"error: {error}", file=sys.stderr)
        return str(error)
    return ""
