"""What the benchmarks over memory banks share: unit rows, the error that bfloat16 banks may add, faiss."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

BF16 = "slrfast, bf16 banks"
BF16_QUERIES = f"{BF16} and queries"  # as under autocast; float32 queries take twice the products, see ops.info_nce
# Rounding a bank to bfloat16 moves an entry by up to 2**-8 of itself, and a score by the sum of D such errors of either
# sign; the error is taken against float64 over the bank as it was before the rounding.
BF16_TOLERANCE = {BF16: 1e-2}


def unit_rows(device: str, *shapes: tuple[int, int]) -> list[Tensor]:
    """Random rows of length one, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    return [F.normalize(torch.randn(shape, generator=generator), dim=1).to(device) for shape in shapes]


def faiss_search(query: Tensor, bank: Tensor, k: int) -> tuple[Callable[[], Sequence[Tensor]] | None, str]:
    """A search of faiss's exact index over a bank that it already holds, or None and why there is none.

    It uses as many threads as torch. Its wheel brings its own OpenMP runtime, so it is imported here, after torch.
    """
    if query.is_cuda:
        return None, "faiss-cpu searches on the CPU only"
    try:
        import faiss
    except ImportError:
        warnings.warn("faiss is not installed: pip install faiss-cpu", stacklevel=2)
        return None, "faiss-cpu is not installed"
    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(bank.numpy())
    rows = query.numpy()

    def search() -> Sequence[Tensor]:
        faiss.omp_set_num_threads(torch.get_num_threads())
        return [torch.from_numpy(found) for found in index.search(rows, k)]

    return search, ""
