"""Losses with their memory banks inside: what :mod:`slrfast.ops` computes, with the state that it is computed against.

A bank is saved and moved with its loss. Where several losses read one bank, register the bank or one of the losses,
and keep the other losses in a plain dict or list, as ``systems/stc.py`` does; otherwise the state dict has the bank
under the name of every loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, overload

import torch
from torch import Tensor, nn

from slrfast import checks, ops
from slrfast.nn.bank import FactoredBank, MemoryBank, write_in_step


class InfoNCE(nn.Module):
    """Contrast every query with its key against all rows of a memory bank: ``ops.info_nce``.

    loss[b] = -log(exp(<q_b, k_b> / t) / (exp(<q_b, k_b> / t) + sum_i exp(<q_b, bank_i> / t))); MoCo Eq. 1, STC Eq. 2,
    MASA Eq. 8, CCL-SLR Eq. 3.

    Args:
        bank: [N, D] negatives.
        temperature: t > 0.
        reduction: "mean", "sum" or "none" over the B rows.

    >>> loss = InfoNCE(MemoryBank(65536, 128), temperature=0.07)
    >>> query, key = torch.eye(128)[:4].requires_grad_(), torch.eye(128)[:4]
    >>> value = loss(query, key)
    >>> loss.enqueue(key)
    >>> value.backward()
    """

    bank: MemoryBank | FactoredBank

    def __init__(
        self,
        bank: MemoryBank | FactoredBank,
        *,
        temperature: float = 0.07,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        checks.positive("InfoNCE", temperature=temperature)
        self.bank = bank
        self.temperature = temperature
        self.reduction = reduction

    @overload
    def forward(self, query: Tensor, key: Tensor, *, return_rank: Literal[False] = ...) -> Tensor: ...
    @overload
    def forward(self, query: Tensor, key: Tensor, *, return_rank: Literal[True]) -> tuple[Tensor, Tensor]: ...
    def forward(self, query: Tensor, key: Tensor, *, return_rank: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """The loss of query and key [B, D]; gradient to the query, and to the key if it requires one.

        ``return_rank`` adds the int64 [B] number of bank rows that score above the key (0: top-1 hit).
        """
        return ops.info_nce(
            query, key, self.bank.features,
            temperature=self.temperature, reduction=self.reduction, return_rank=return_rank,
        )  # type: ignore[call-overload]  # fmt: skip

    def enqueue(self, *keys: Tensor, **named: Tensor) -> None:
        """Write keys into the bank, after the loss and before or after its backward pass."""
        self.bank.enqueue(*keys, **named)


class KnowledgeTransfer(nn.Module):
    """Let the student's similarities to the teacher's k nearest rows follow the teacher's: ``ops.neighbor_kl``.

    loss[b] = KL(P_b || Q_b), with P_b and Q_b the softmax over the k rows of ``teacher_bank`` nearest to the teacher of
    <teacher_b, teacher_bank_i> / t_t and <student_b, student_bank_i> / t_s; STC Eq. 5-6. Row i of both banks must be
    one instance. Write to the banks themselves, once for every batch.

    Args:
        teacher_bank: [N, D]; of a :class:`FactoredBank` the sum is used.
        student_bank: [N, D']; None takes the teacher's.
        k: neighbours, in [1, N].
        teacher_temperature, student_temperature: t_t and t_s, > 0.
        reduction: "mean", "sum" or "none" over the B rows.

    >>> joint, motion = MemoryBank(64, 8), MemoryBank(64, 8)
    >>> joint_to_motion = KnowledgeTransfer(joint, motion, 16)
    >>> motion_to_joint = KnowledgeTransfer(motion, joint, 16)
    >>> keys, query = torch.eye(8)[:2], torch.eye(8)[2:4].requires_grad_()
    >>> joint_to_motion(keys, query).backward()
    """

    teacher_bank: MemoryBank | FactoredBank
    student_bank: MemoryBank | FactoredBank | None

    def __init__(
        self,
        teacher_bank: MemoryBank | FactoredBank,
        student_bank: MemoryBank | FactoredBank | None,
        k: int,
        *,
        teacher_temperature: float = 0.05,
        student_temperature: float = 0.1,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if student_bank is teacher_bank:
            student_bank = None
        op, rows = "KnowledgeTransfer", len(teacher_bank.features)
        student_rows = rows if student_bank is None else len(student_bank.features)
        checks.require(student_rows == rows, op, "student_bank", f"have the teacher's {rows} rows", student_rows)
        checks.integer_between(op, 1, rows, k=k)
        checks.positive(op, teacher_temperature=teacher_temperature, student_temperature=student_temperature)
        self.teacher_bank = teacher_bank
        self.student_bank = student_bank
        self.k = k
        self.teacher_temperature = teacher_temperature
        self.student_temperature = student_temperature
        self.reduction = reduction

    def forward(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The loss of teacher [B, D] and student [B, D']; gradient to the student."""
        student_bank = self.teacher_bank if self.student_bank is None else self.student_bank
        return ops.neighbor_kl(
            teacher, self.teacher_bank.features, student, student_bank.features, self.k,
            teacher_temperature=self.teacher_temperature, student_temperature=self.student_temperature,
            reduction=self.reduction,
        )  # fmt: skip


class FeatureConsistency(nn.Module):
    """Pull the student's softmax over its D features to the teacher's: ``ops.feature_kl``, STC Eq. 3.

    loss[b] = KL(softmax(teacher_b / t) || softmax(student_b / t)). It has no bank.

    Args:
        temperature: t > 0.
        reduction: "mean", "sum" or "none" over the B rows.

    >>> hand, trunk = torch.eye(8)[:2], torch.eye(8)[:2]
    >>> FeatureConsistency(temperature=0.1)(hand, trunk)
    tensor(0.)
    """

    def __init__(self, *, temperature: float = 0.1, reduction: str = "mean") -> None:
        super().__init__()
        checks.positive("FeatureConsistency", temperature=temperature)
        self.temperature = temperature
        self.reduction = reduction

    def forward(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The loss of teacher and student [B, D]; gradient to the student."""
        return ops.feature_kl(teacher, student, temperature=self.temperature, reduction=self.reduction)


class SemanticPositives(nn.Module):
    """Bank rows that are near in any modality are positives in all: CCL-SLR's semantic positive mining, Eq. 7-8.

    P_b = the union over modalities m of the k rows of label bank m nearest to g_b^m; with
    z_bi = <f_b^m, bank_i^m> / t, loss^m[b] = (1/N) [sum_i softplus(z_bi) - sum_{i in P_b} z_bi].
    The rows i of all banks must be one instance, so write them with :meth:`enqueue`.

    Args:
        label_banks: for every modality the bank that is searched for neighbours, [N, D_g].
        banks: for the same modalities the bank that the loss is against, [N, D].
        k: neighbours in each modality, in [1, N].
        temperature: t > 0.
        reduction: "mean", "sum" or "none" over the B rows.

    >>> label_banks = {"rgb": MemoryBank(64, 32), "pose": MemoryBank(64, 16)}
    >>> mine = SemanticPositives(label_banks, {"rgb": MemoryBank(64, 8), "pose": MemoryBank(64, 8)}, k=10)
    >>> g = {"rgb": torch.eye(32)[:4], "pose": torch.eye(16)[:4]}
    >>> f = {"rgb": torch.eye(8)[:4], "pose": torch.eye(8)[4:]}
    >>> losses = mine(g, f)
    >>> sorted(losses), mine.positives(g).shape
    (['pose', 'rgb'], torch.Size([4, 20]))
    >>> mine.enqueue(g, f)
    """

    label_banks: Mapping[str, MemoryBank]  # nn.ModuleDicts
    banks: Mapping[str, MemoryBank]

    def __init__(
        self,
        label_banks: Mapping[str, MemoryBank],
        banks: Mapping[str, MemoryBank],
        *,
        k: int = 10,
        temperature: float = 0.02,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        op, names = "SemanticPositives", sorted(banks)
        checks.require(len(names) > 0, op, "banks", "name at least one modality", names)
        checks.require(sorted(label_banks) == names, op, "label_banks", f"name {names}", sorted(label_banks))
        rows = sorted({len(bank.features) for bank in (*label_banks.values(), *banks.values())})
        checks.require(len(rows) == 1, op, "banks", "all have the same number of rows", rows)
        checks.integer_between(op, 1, rows[0], k=k)
        checks.positive(op, temperature=temperature)
        self.label_banks = nn.ModuleDict(label_banks)  # type: ignore[assignment]
        self.banks = nn.ModuleDict(banks)  # type: ignore[assignment]
        self.k = k
        self.temperature = temperature
        self.reduction = reduction

    def positives(self, labels: Mapping[str, Tensor]) -> Tensor:
        """The bank indices [B, M k] of the k nearest rows in each of M modalities; an index may repeat."""
        found = [
            ops.topk_similarity(labels[name].detach(), bank.features, self.k, sorted=False)[1]
            for name, bank in self.label_banks.items()
        ]
        return torch.cat(found, 1)

    def forward(self, labels: Mapping[str, Tensor], queries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss of every modality; g ``labels`` [B, D_g] and f ``queries`` [B, D], gradient to the queries."""
        self._check(labels=labels, queries=queries)
        positives = self.positives(labels)
        return {
            name: ops.mined_bce(
                queries[name], bank.features, positives, temperature=self.temperature, reduction=self.reduction
            )
            for name, bank in self.banks.items()
        }

    def enqueue(self, labels: Mapping[str, Tensor], keys: Mapping[str, Tensor]) -> None:
        """Write the g and f keys of every modality, all of them or, if one does not fit, none."""
        self._check(labels=labels, keys=keys)
        pairs = {f"labels[{name!r}]": (bank, labels[name]) for name, bank in self.label_banks.items()}
        pairs |= {f"keys[{name!r}]": (bank, keys[name]) for name, bank in self.banks.items()}
        write_in_step("SemanticPositives", pairs)

    def _check(self, **arguments: Mapping[str, Tensor]) -> None:
        for argument, tensors in arguments.items():
            rule = f"have a tensor for each of {sorted(self.banks)}"
            checks.require(set(tensors) == set(self.banks), "SemanticPositives", argument, rule, sorted(tensors))
