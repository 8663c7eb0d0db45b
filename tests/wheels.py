"""Wheels for tests, without a build tool."""

import zipfile

LOG_RATIO = '''
import numpy as np
from pathlib import Path
from sklearn.base import BaseEstimator, TransformerMixin


class LogRatio(TransformerMixin, BaseEstimator):
    """The logarithm of the ratio of two columns, which it takes from a data frame by their names."""

    def __init__(self, above="spent", below="visits"):
        self.above, self.below = above, below

    def fit(self, X, y=None):
        self.n_features_in_ = X.shape[1]
        self.offset_ = float(Path(__file__).with_name("offset.txt").read_text())
        return self

    def transform(self, X):
        ratio = (X[self.above] + self.offset_) / (X[self.below] + self.offset_)
        return np.log(ratio.to_numpy(dtype=float))[:, None]
'''

MODELS = """
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline

from my_features import LogRatio


def make_pipeline_of_ratio(trees=5):
    columns = make_column_transformer((LogRatio("amount", "items"), ["amount", "items"]))
    return make_pipeline(columns, SimpleImputer(), RandomForestClassifier(trees))


def make_forest(trees=5):
    return RandomForestClassifier(trees, random_state=1)
"""


def make_wheel(folder, name="my_features", version="1.2", tags="py3-none-any", **files):
    """Write a wheel with a package, by default `my_features` with a transformer and a data file; return its path."""
    files = files or {"__init__.py": LOG_RATIO, "offset.txt": "1.0", "models.py": MODELS}
    path = folder / f"{name}-{version}-{tags}.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(f"{name}/{file}", text)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tags}\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path
