"""Words and numbers about a result that no compiled program depends on."""


class Account:
    """Base of static fields that are told, not computed with.

    All accounts of a class are equal, so that a program compiled for one result serves every other
    of its shape.
    """

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))
