"""Errors of the contract; every error of the project descends from DaianError.

    DaianError
      SchemaError     a schema, vocabulary or catalogue that contradicts itself or its data
      RequestError    a raw request that cannot be read as one
      BundleError     a bundle directory that must not be served
      (service.errors adds the service's own)

Raised by this package, caught at the edges (HTTP handlers, the command line). Never used for flow control.
"""


class DaianError(Exception):
    """Any failure that the project foresees. The message says what was wrong, what was found and what to do."""


class SchemaError(DaianError):
    """The schema, a vocabulary or the catalogue contradicts itself, or the data that it is asked to describe."""


class RequestError(DaianError):
    """A raw request lacks a part or holds one of the wrong type."""


class BundleError(DaianError):
    """A bundle is incomplete, altered, or made for another contract."""
