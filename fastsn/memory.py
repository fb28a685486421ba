"""Memory of results that is used again, where getting it anew costs more than the kernels do.

On the CPU, memory that is given back and taken again in every step comes as fresh pages, and the
page faults take longer than normalizing the weights. A :class:`Memory` therefore keeps the storages
that the large results of a batch of layers were made in, and gives one out again once nobody else
holds it: no result, no view of one, no saved tensor, no array of another library, no other process.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

__all__ = ["LARGE", "Memory"]

#: Bytes from which on a result's memory is kept; smaller pieces stay with the allocator anyway.
LARGE = 32768


class _Piece:
    """One storage; ``flat`` is all of it."""

    __slots__ = ("alone", "flat", "size")

    def __init__(self, elements: int, dtype: torch.dtype) -> None:
        self.flat = torch.empty(elements, dtype=dtype)
        self.size = self.flat.untyped_storage().nbytes()
        self.alone = self._holders()

    def _holders(self) -> tuple[int, int]:
        """How many tensors hold the storage, and how many names its Python object has.

        The object is one for all who ask for it, and does not count among the tensors.
        """
        storage = self.flat.untyped_storage()
        return torch._C._storage_Use_Count(storage._cdata), sys.getrefcount(storage)

    def is_free(self) -> bool:
        """Whether nobody else holds it, and nobody has changed what it is."""
        if self._holders() != self.alone:
            return False
        storage = self.flat.untyped_storage()
        return storage.nbytes() == self.size and not storage.is_shared()


class Memory:
    """Storages for the large results of one plan: at most two for each, those used last.

    Two, because a discriminator has two forwards before their backward, and gradients that are
    added up need those of one backward beside the sums.
    """

    def __init__(self, elements: Sequence[int]) -> None:
        """``elements``: of each result."""
        self._elements = elements
        self._pieces: dict[tuple[str, torch.dtype], list[tuple[int, list[_Piece]]]] = {}

    def take(self, kind: str, dtype: torch.dtype) -> list[Tensor]:
        """Uninitialized vectors for the large results of ``dtype``, in order; none in inference
        mode, whose tensors are of another kind.

        Args:
            kind: what the results are: those of one kind take turns.
        """
        if torch.is_inference_mode_enabled():
            return []
        kept = self._pieces.get((kind, dtype))
        if kept is None:
            large = [n for n in self._elements if n * dtype.itemsize >= LARGE]
            kept = self._pieces[kind, dtype] = [(n, []) for n in large]
        return [_take(pieces, n, dtype) for n, pieces in kept]

    def release(self) -> None:
        """Gives back what is kept; results that are in use keep their memory."""
        self._pieces.clear()


def _take(pieces: list[_Piece], elements: int, dtype: torch.dtype) -> Tensor:
    seen: list[_Piece] = []
    try:
        with suppress(IndexError):
            while True:
                seen.insert(0, pieces.pop())  # no other thread has it until it is back in the list
                if seen[0].is_free():
                    return seen[0].flat.detach()  # an alias, which counts as a holder
        seen.append(_Piece(elements, dtype))
        return seen[-1].flat.detach()
    finally:
        pieces.extend(seen)
        del pieces[:-2]
