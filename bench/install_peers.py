"""Installs what the bench compares with, each in an environment of its own under `.bench-peers`, outside the package.

    python -m bench.install_peers [--apt] [NAME ...]

One that cannot be installed is told, and the others go on; the bench runs with those that are there. What is installed
already, in the version of the table, is left as it is. Delete a folder to have it made again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.subjects.programs import PACKAGES, SYSTEM, Package, found, version

INSTALL_SECONDS = 900
SAID = 1_500  # characters of what a failed step wrote


class NotInstalled(Exception):
    """Why, for the reader of the terminal."""


def install(package: Package) -> None:
    """Install a package in its folder.

    Raises:
        NotInstalled: a step failed, or the program is not there in the end.
    """
    package.folder.mkdir(parents=True, exist_ok=True)
    for command in steps(package):
        run(command, package.folder)
    found.cache_clear()
    version.cache_clear()
    if version(package) is None:
        raise NotInstalled(f"its program, {package.program}, is not in {package.folder}")


def is_there(package: Package) -> bool:
    """Whether the version of the table is what would run."""
    return package.version in re.split(r"[ ,]+", version(package) or "")


def steps(package: Package) -> list[list[str]]:
    """The commands that install a package, in its folder; writes the files that they need."""
    if package.node:
        (package.folder / "package.json").write_text(manifest(package))
        return [["npm", "install", "--no-audit", "--no-fund", "--no-update-notifier"]]
    extra = f"[{package.extra}]" if package.extra else ""
    return [
        [sys.executable, "-m", "venv", "--clear", "."],
        [str(Path("bin", "python")), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         f"{package.name}{extra}=={package.version}"],
    ]  # fmt: skip


def manifest(package: Package) -> str:
    """The `package.json` of a folder that holds one package."""
    whole = {
        "name": f"bench-{package.folder.name}",
        "private": True,
        "dependencies": {package.name: package.version},
        "overrides": dict(package.overrides),
    }
    return json.dumps(whole, indent=2) + "\n"


def run(command: Sequence[str], folder: Path) -> None:
    """Run one step.

    Raises:
        NotInstalled: it failed, took too long, or there is no such program.
    """
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=INSTALL_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(str(error)) from None
    if done.returncode:
        raise NotInstalled(f"{' '.join(command)} ended with {done.returncode}: {done.stdout.strip()[-SAID:]}")


def install_system(*, apt: bool) -> bool:
    """See to the distribution's packages; without `apt`, or without the right to it, tell what is missing."""
    missing = [name for name in SYSTEM if shutil.which(name) is None]
    if not missing:
        return True
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if not apt or os.geteuid() != 0:
        print(f"{', '.join(missing)}: not installed. As root: {' '.join(command)}", flush=True)
        return False
    try:
        run(["apt-get", "update"], Path("/"))
        run(command, Path("/"))
    except NotInstalled as error:
        print(f"{', '.join(missing)}: {error}", flush=True)
        return False
    return True


def main() -> int:
    """Install what the command line names, or all. The exit status says whether all of it is there."""
    options = argparse.ArgumentParser(prog="bench.install_peers", description="Install what the bench compares with.")
    system = " and ".join(SYSTEM)
    options.add_argument("--apt", action="store_true", help=f"install {system} too, with apt-get (as root)")
    known = [package.folder.name for package in PACKAGES]
    options.add_argument("names", nargs="*", metavar="NAME", help=f"these packages alone, of: {', '.join(known)}")
    chosen = options.parse_args()
    unknown = sorted(set(chosen.names) - set(known))
    if unknown:
        options.error(f"unknown: {', '.join(unknown)}; there are: {', '.join(known)}")
    whole = install_system(apt=chosen.apt)
    for package in PACKAGES:
        name = package.folder.name
        if chosen.names and name not in chosen.names:
            continue
        try:
            if not is_there(package):
                print(f"{name}: installing {package.version}", flush=True)
                install(package)
            print(f"{name}: {version(package)}", flush=True)
        except (NotInstalled, OSError, subprocess.SubprocessError) as error:
            print(f"{name}: {error}", flush=True)
            whole = False
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
