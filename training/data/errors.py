"""DataError, the one error of the data doors; raised by everything in `training/data`, never caught here.

Its message names the file, and the row and column where there is one: what was wrong, what was found, what to do.
"""

from service.contract.errors import DaianError


class DataError(DaianError):
    """A data file or folder cannot be used as it is."""
