"""The losses of CEMA (Chen et al., ICLR 2024, section 3.2), in nats.

Logits are float32 [B, K]; functions return [B], one value per sample, but for ``edge_loss``, which puts them together.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def entropy(logits_BK: torch.Tensor) -> torch.Tensor:
    """H(p) = -sum p ln p of the softmax output."""
    log_p_BK = functional.log_softmax(logits_BK, dim=1)
    return -(log_p_BK.exp() * log_p_BK).sum(1)


def confidence_weight(entropy_B: torch.Tensor, e_max_nats: float) -> torch.Tensor:
    """h(x) = exp(E_max - H(x)), without gradient: confident samples count more (EATA, Eq. 3)."""
    return torch.exp(e_max_nats - entropy_B.detach())


def edge_loss(
    teacher_BK: torch.Tensor, student_BK: torch.Tensor, e_max_nats: float, weights: tuple[float, float, float]
) -> torch.Tensor:
    """L_e = a mean[h_s H(g)] + b mean[h_t KL(f || g)] + c mean[h_t CE(g, argmax f)]; weights: a, b, c."""
    entropy_B = entropy(student_BK)
    student_weight_B = confidence_weight(entropy_B, e_max_nats)
    teacher_weight_B = confidence_weight(entropy(teacher_BK), e_max_nats)
    return (
        weights[0] * (student_weight_B * entropy_B).mean()
        + weights[1] * (teacher_weight_B * divergence(teacher_BK, student_BK)).mean()
        + weights[2] * (teacher_weight_B * pseudo_label_loss(teacher_BK, student_BK)).mean()
    )


def divergence(teacher_BK: torch.Tensor, student_BK: torch.Tensor) -> torch.Tensor:
    """KL(softmax teacher || softmax student), both given as logits."""
    teacher_log_p, student_log_p = functional.log_softmax(teacher_BK, 1), functional.log_softmax(student_BK, 1)
    return (teacher_log_p.exp() * (teacher_log_p - student_log_p)).sum(1)


def pseudo_label_loss(teacher_BK: torch.Tensor, student_BK: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the student against the teacher's most probable class."""
    return functional.cross_entropy(student_BK, teacher_BK.argmax(1), reduction="none")
