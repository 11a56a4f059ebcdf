"""A callable that stands in for a method of one object, and is taken away without a trace."""

import copy
import inspect
import threading
import types
from collections.abc import Callable
from typing import Any

_LOCK = threading.RLock()
NOTHING = object()


class StandIn:
    """Stands in for ``owner.name``: calls ``handler(stand-in, args, kwargs)``.

    It shows the signature of what it stands in for, which pipelines inspect. A deep copy of its
    owner gets the plain method: what a copy does is not the owner's doing.
    """

    def __init__(self, owner: Any, name: str, handler: Callable[..., Any]):
        self.owner, self.name, self.handler = owner, name, handler
        self.original = getattr(owner, name)
        self.before = vars(owner).get(name, NOTHING)
        self.count = 1
        self.__name__ = name
        self.__doc__ = getattr(self.original, "__doc__", None)
        try:
            self.__signature__ = inspect.signature(self.original)
        except (TypeError, ValueError):
            self.__signature__ = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.handler(self, args, kwargs)

    @property
    def covers(self) -> bool:
        """Whether what it stands in for is another thing than its owner's class has."""
        plain = getattr(type(self.owner), self.name, None)
        own = getattr(self.before, "__self__", None) is self.owner
        same = own and getattr(self.before, "__func__", None) is plain
        return self.before is not NOTHING and not same

    def __deepcopy__(self, memo: dict) -> Any:
        twin = memo.get(id(self.owner))
        if twin is None:
            # The owner's dictionary alone: who copies that means to put it back.
            return self
        if self.before is not NOTHING:
            return copy.deepcopy(self.before, memo)
        return types.MethodType(getattr(type(self.owner), self.name), twin)

    def __reduce__(self) -> tuple:
        return getattr, (self.owner, self.name)


def put(owner: Any, name: str, handler: Callable[..., Any]) -> StandIn:
    """Puts a stand-in over ``owner.name``; the one that is there already is used once more.

    It goes into the object's own dictionary: modules and compiled modules mind `setattr`.
    """
    with _LOCK:
        found = vars(owner).get(name)
        if isinstance(found, StandIn) and found.handler is handler:
            found.count += 1
            return found
        standin = vars(owner)[name] = StandIn(owner, name, handler)
        return standin


def take(standin: StandIn) -> None:
    """Takes a stand-in away once as many have asked as have put it, and leaves what was there.

    Where somebody has put something over it since, that stays, and the stand-in under it, which
    hands everything on.
    """
    with _LOCK:
        standin.count -= 1
        own = vars(standin.owner)
        if standin.count or own.get(standin.name) is not standin:
            return
        if standin.before is NOTHING:
            del own[standin.name]
        else:
            own[standin.name] = standin.before
