"""Memory banks as the field writes them: MoCo's queue [D, N], cloned; whole logits; torch.topk; dense labels."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F


def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """MoCo: the positive's logit beside the negatives', and a cross entropy with label 0."""
    l_pos = torch.einsum("nc,nc->n", [q, k]).unsqueeze(-1)
    l_neg = torch.einsum("nc,ck->nk", [q, queue.clone().detach()])
    logits = torch.cat([l_pos, l_neg], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(logits.shape[0], dtype=torch.long, device=q.device))


def feature_kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """STC's feature consistency."""
    log_student = F.log_softmax(student / temperature, 1)
    return F.kl_div(log_student, F.softmax(teacher.detach() / temperature, 1), reduction="batchmean")


def neighbor_kl(
    teacher: Tensor, teacher_queue: Tensor, student: Tensor, student_queue: Tensor, k: int, tt: float, ts: float
) -> Tensor:
    """STC's knowledge transfer: the teacher's nearest columns by a sorted torch.topk, gathered from the student."""
    l_teacher = torch.mm(teacher.detach(), teacher_queue.clone().detach())
    l_student = torch.mm(student, student_queue.clone().detach())
    values, index = torch.topk(l_teacher, k, dim=1)
    p = F.softmax(values / tt, dim=1)
    return F.kl_div(F.log_softmax(torch.gather(l_student, 1, index) / ts, dim=1), p, reduction="batchmean")


def topk(query: Tensor, bank: Tensor, k: int, sorted: bool = True) -> tuple[Tensor, Tensor]:
    """A matrix product and torch.topk, by default sorted."""
    return torch.topk(torch.mm(query, bank.t()), k, dim=1, largest=True, sorted=sorted)


def mine(q: Tensor, queue: Tensor, k: int) -> Tensor:
    """Indices of the k nearest columns, as cross-view mining writes it (CrosSCLR, on which CCL-SLR builds)."""
    return torch.topk(torch.einsum("nc,ck->nk", [q, queue.clone().detach()]), k, dim=1)[1]


def dense_labels(index: Tensor, size: int) -> Tensor:
    """Multi-hot labels [B, N] by scatter."""
    onehot = torch.zeros(index.shape[0], size, device=index.device)
    return onehot.scatter_(1, index, 1.0)


def dense_bce(q: Tensor, queue: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """CCL-SLR Eq. 7-8: binary cross entropy of every similarity against dense labels."""
    logits = torch.einsum("nc,ck->nk", [q, queue.clone().detach()]) / temperature
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def mined_bce(
    q: tuple[Tensor, Tensor],
    queues: tuple[Tensor, Tensor],
    g: tuple[Tensor, Tensor],
    label_queues: tuple[Tensor, Tensor],
    k: int,
    temperature: float,
) -> Tensor:
    """CCL-SLR's semantic positives of two modalities: mining in two label banks, their union, both losses."""
    with torch.no_grad():
        size = queues[0].shape[1]
        first, second = (dense_labels(mine(x, queue, k), size) for x, queue in zip(g, label_queues, strict=True))
        labels = torch.max(first, second)
    return dense_bce(q[0], queues[0], labels, temperature) + dense_bce(q[1], queues[1], labels, temperature)


@torch.no_grad()
def enqueue(queue: Tensor, queue_ptr: Tensor, keys: Tensor) -> None:
    """MoCo's dequeue and enqueue at a pointer that the host reads."""
    keys = F.normalize(keys, dim=1)
    batch_size, ptr = keys.shape[0], int(queue_ptr)
    assert queue.shape[1] % batch_size == 0
    queue[:, ptr : ptr + batch_size] = keys.T
    queue_ptr[0] = (ptr + batch_size) % queue.shape[1]


@torch.no_grad()
def momentum_update(encoder_k: Iterable[Tensor], encoder_q: Iterable[Tensor], m: float) -> None:
    """MoCo's momentum update, one parameter after the other."""
    for param_k, param_q in zip(encoder_k, encoder_q, strict=True):
        param_k.data = param_k.data * m + param_q.data * (1.0 - m)
