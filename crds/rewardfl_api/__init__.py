"""The RewardFLJob API: the one place where fields, ranges, defaults and their documentation are written."""

__version__ = "0.2.0"
