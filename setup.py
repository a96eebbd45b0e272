"""The packages of the wheel; all else is in setup.cfg.

The settings files and the paper's tables stay at the root of the checkout, and go into the wheel as packages of data.
"""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["capaboost*"]), "capaboost.configs", "capaboost.results.paper"])
