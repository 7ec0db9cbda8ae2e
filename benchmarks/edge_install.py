"""What a device installs: build the wheel, install it into fresh environments, measure them.

python benchmarks/edge_install.py DIR     prints one line of JSON: the wheel, and for ``base`` and ``verify``
                                          the interpreter and the MiB of every package (cema itself not counted)

The packaging tests and the footprint benchmark both start here, so that budget and figures are the same measure.
Size = sum of the sizes of the files that pip recorded, without .pyc. Standard library and pip only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = {"base": "", "verify": "[verify]"}
_OURS = "cema"


def make_installs(folder: Path) -> dict[str, object]:
    """Build and install everything below ``folder``. Raises CalledProcessError with pip's words in ``stderr``."""
    wheel = build_wheel(folder / "wheel")
    return {"wheel": str(wheel), "installs": {name: install(wheel, folder, name) for name in VARIANTS}}


def build_wheel(folder: Path) -> Path:
    _pip("wheel", str(ROOT), "--no-deps", "--wheel-dir", str(folder))
    (wheel,) = folder.glob("cema-*.whl")
    return wheel


def install(wheel: Path, folder: Path, variant: str) -> dict[str, object]:
    """One environment that holds nothing but the wheel and what it asks for."""
    home = folder / variant
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    _pip(
        "--python", str(python), "install", "--no-compile", "-c", str(ROOT / "constraints.txt"),
        f"{wheel}{VARIANTS[variant]}",
    )  # fmt: skip
    (site_packages,) = home.glob("lib/python*/site-packages")
    packages_mib = installed_mib(site_packages)
    return {"python": str(python), "packages": packages_mib, "mib": round(sum(packages_mib.values()), 2)}


def installed_mib(site_packages: Path) -> dict[str, float]:
    """Package -> MiB of its files."""
    found = {}
    for package in metadata.distributions(path=[str(site_packages)]):
        files = [Path(str(file.locate())) for file in package.files or () if file.suffix != ".pyc"]
        found[package.metadata["Name"].lower()] = sum(file.stat().st_size for file in files if file.is_file()) / 2**20
    del found[_OURS]
    return {name: round(mib, 2) for name, mib in sorted(found.items(), key=lambda item: -item[1])}


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True, capture_output=True, text=True)


def main() -> None:
    try:
        print(json.dumps(make_installs(Path(sys.argv[1]))))
    except subprocess.CalledProcessError as error:
        sys.exit(error.stderr)


if __name__ == "__main__":
    main()
