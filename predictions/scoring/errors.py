"""The error of all checks of a model file; `estimator.load` adds the file's name and what to do."""


class ContentsError(ValueError):
    """A model file holds what scikit-learn would not have written; the message is the reason."""
