"""The exceptions of the data room: every message names what is wrong, where, and what to do about it."""


class DataError(ValueError):
    """Data that cannot be read or used as configured."""


class AssetError(RuntimeError):
    """An asset that cannot be fetched, verified or opened."""
