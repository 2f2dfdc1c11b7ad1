"""What pyproject.toml cannot say: an installed package has a copy of configs/ in it."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class Build(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree("configs", Path(self.build_lib) / "sepconv" / "configs", dirs_exist_ok=True)


setup(cmdclass={"build_py": Build})
