"""Packaging of taskmaster: a host supervisor for Linux."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="taskmaster",
    version="0.1.0",
    description="A host supervisor whose jobs survive the death of any of its parts",
    long_description=(Path(__file__).parent / "README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["taskmaster", "taskmaster.*"]),
    package_data={"taskmaster": ["py.typed"]},
    install_requires=["click>=8.1", "msgspec>=0.18.6", "psutil>=5.9", "structlog>=23.1"],
    extras_require={
        "test": ["hypothesis>=6.100", "pytest>=8.0", "pytest-timeout>=2.2", "pytest-xdist>=3.5"],
        "check": ["mypy>=1.10", "ruff>=0.6", "types-psutil"],
        "bench": ["supervisor>=4.2"],
    },
    entry_points={
        "console_scripts": [
            "taskmasterd=taskmaster.control.main:main",
            "taskmasterctl=taskmaster.cli.main:main",
        ]
    },
)
