"""What can go wrong between a trained run and a bundle.

BundleError (the contract's)
└── ExportError      the model cannot become graphs
    └── ParityError  it became graphs that give other numbers
"""

from service.contract.errors import BundleError


class ExportError(BundleError):
    """The model cannot be turned into graphs that the service may load; the message says which line of it and why."""


class ParityError(ExportError):
    """The exported graphs do not give PyTorch's numbers; the message names the case and the largest difference."""
