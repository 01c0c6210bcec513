"""A local stand-in for the Kie.ai service: the same paths, real sockets, faults on demand.

It imports nothing else of the package, so it cannot share the client's mistakes.
"""

from .durations import Durations, Fixed, Lognormal, Never, Uniform, parse_durations
from .faults import Faults
from .server import Sandbox
from .serving import ServeOptions, serve
from .tasks import Delivery, SandboxTask

__all__ = [
    "Delivery",
    "Durations",
    "Faults",
    "Fixed",
    "Lognormal",
    "Never",
    "Sandbox",
    "SandboxTask",
    "ServeOptions",
    "Uniform",
    "parse_durations",
    "serve",
]
