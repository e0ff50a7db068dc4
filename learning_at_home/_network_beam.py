"""`TesseractNetwork.find_best_experts`: the best experts of grids too large for an alive map."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from learning_at_home._network_arguments import grid_size_of
from learning_at_home._network_calls import TIMEOUT, NetworkCalls, awaited
from learning_at_home._network_experts import AliveExpert
from learning_at_home.errors import InvalidArgument

if TYPE_CHECKING:
    from torch import Tensor

    Place: TypeAlias = tuple[str, int, bytes, int]  # host, port, public key, boot id


@dataclass(frozen=True)
class BestExperts:
    """The best experts alive for each row of scores.

    index: int32 [B, k] into experts, best first; -1 where no more are alive. experts: those that any row chose, by
    flat_id. replicas: flat_id → (host, port, public_key, boot_id) of up to 7 further servers, as of
    `TesseractNetwork.replicas`. declared: how many experts the grid has, as their servers count them, so replicas too.
    other_schemas: those left out, because most declare another schema. unread: level records that were not read in
    time; 0: the choice is exact, or as exact as beam_size lets it be.
    """

    index: Tensor
    experts: list[AliveExpert]
    replicas: dict[int, tuple[Place, ...]]
    declared: int
    other_schemas: int
    unread: int


class BeamCalls(NetworkCalls):
    """Search by beam."""

    @overload
    def find_best_experts(
        self,
        prefix: str,
        grid: Sequence[int],
        scores: Tensor,
        k_best: int,
        beam_size: int | None = ...,
        timeout: float = ...,
        *,
        return_future: Literal[False] = ...,
    ) -> BestExperts: ...
    @overload
    def find_best_experts(
        self,
        prefix: str,
        grid: Sequence[int],
        scores: Tensor,
        k_best: int,
        beam_size: int | None = ...,
        timeout: float = ...,
        *,
        return_future: Literal[True],
    ) -> Future[BestExperts]: ...
    def find_best_experts(
        self,
        prefix: str,
        grid: Sequence[int],
        scores: Tensor,
        k_best: int,
        beam_size: int | None = None,
        timeout: float = TIMEOUT,
        *,
        return_future: bool = False,
    ) -> BestExperts | Future[BestExperts]:
        """Find the best experts alive for each row, expert (i1, ..., id) scoring s1[i1] + ... + sd[id].

        For grids of any size, from records that servers keep for it (see `grid_size` of `declare_experts`). Best-first
        search with the best scores of the axes behind as bound (A*: Hart et al. 1968): exact if beam_size is at least
        the number of tuples (i1, ..., ij) alive for every j < d; and mostly far earlier. What was read stays fresh in
        the background while it is used, so most searches send nothing and take microseconds a row.

        Args:
            prefix: experts are ``{prefix}.{i1}.….{id}``.
            grid: sizes of 1 to 8 axes, each at most 65536.
            scores: [B, sum(grid)], converted to float32 on the CPU. NaN and infinity are void: never chosen.
            k_best: experts a row, 1 to 32.
            beam_size: tuples of each length that a row may look below; the greater of 32 and 4 * k_best by default.
            timeout: seconds, after which the answer is what is known by then.

        Returns:
            `BestExperts`; ties go to the lower flat_id.
        """
        import torch

        sizes = grid_size_of("grid", grid)
        if scores.dim() != 2 or scores.shape[1] != sum(sizes):
            raise InvalidArgument(f"scores: expected [B, {sum(sizes)}], got {list(scores.shape)}")
        rows = scores.detach().to("cpu", torch.float32).contiguous()
        beam = max(32, 4 * k_best) if beam_size is None else beam_size
        if k_best < 1 or beam < 1:
            raise InvalidArgument(f"k_best, beam_size: expected at least 1, got {k_best} and {beam}")
        answer = self._running.find_best_experts(prefix, sizes, rows.data_ptr(), len(rows), k_best, beam, timeout)

        def best(found: Any) -> BestExperts:
            experts, replicas, index, *counts = found
            chosen = torch.frombuffer(bytearray(index), dtype=torch.int32) if index else torch.empty(0).int()
            return BestExperts(
                chosen.view(len(rows), k_best), [AliveExpert(*expert) for expert in experts], replicas, *counts
            )

        return self._result(answer, best, return_future)

    async def afind_best_experts(
        self,
        prefix: str,
        grid: Sequence[int],
        scores: Tensor,
        k_best: int,
        beam_size: int | None = None,
        timeout: float = TIMEOUT,
    ) -> BestExperts:
        """`find_best_experts`, to await."""
        return await awaited(
            self.find_best_experts(prefix, grid, scores, k_best, beam_size, timeout, return_future=True)
        )
