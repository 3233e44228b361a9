"""Which packages the wheel holds; pyproject.toml has everything else.

The configuration files are installed as mbv3_jax/_shipped/configs, where mbv3_jax/run/shipped.py
finds them by name. pyproject.toml cannot combine such a mapping with an automatic search.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
FILES = [path for kind in ("py", "json") for path in HERE.glob(f"configs/**/*.{kind}")]
FOLDERS = sorted({path.parent.relative_to(HERE) for path in FILES})
CONFIGS = {f"mbv3_jax._shipped.{'.'.join(folder.parts)}": folder for folder in FOLDERS}

setup(
    packages=[*find_packages(include=["mbv3_jax", "mbv3_jax.*"]), *CONFIGS],
    package_dir={name: folder.as_posix() for name, folder in CONFIGS.items()},
)
