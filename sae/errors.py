"""Names of failures.

Every error the workbench raises on purpose is a `SaeError`. It is a `ValueError`, so code that knows nothing of the workbench can still
catch it. Messages are written for the reader of the traceback: which argument, what it was, what is allowed, where.
"""


class SaeError(ValueError):
    """Something the user gave, or something on disk, cannot be used as it is."""


class ConfigError(SaeError):
    """An argument or a configuration value is out of its range, unknown, missing or of the wrong type."""


class FormatError(SaeError):
    """A file or folder is not what it says it is: damaged, truncated, of another version, or made from something else."""


class CacheError(SaeError):
    """A cached result cannot be read or written: a damaged entry, a key that collides, or a full disk."""
