"""Many samples through B slots of one network: a finished one makes room for the next."""

from .engine import Engine
from .errors import EngineError, RequestError
from .request import Request
from .sample import Sample

__all__ = ["Engine", "EngineError", "Request", "RequestError", "Sample"]
