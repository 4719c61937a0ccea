"""Manifold-constrained hyper-connections (mHC): the modules, and six diagnostics of how they behave with width."""

from abcfx.hyper_connections.diagnosis import Diagnosis
from abcfx.hyper_connections.diagnostics import (
    gate_statistics,
    iterations_needed,
    logit_update,
    mixing_logits,
    quotient_jacobian,
    sensitivity,
    sinkhorn_error,
    spectrum,
)
from abcfx.hyper_connections.found import FoundHyperConnection, find_hyper_connections
from abcfx.hyper_connections.module import HyperConnection, HyperHead, StreamWeights, stream_weights
from abcfx.hyper_connections.sinkhorn_iterations import gauge_projector, sinkhorn, sinkhorn_jacobian
from abcfx.hyper_connections.suite import diagnose

__all__ = [
    "Diagnosis",
    "FoundHyperConnection",
    "HyperConnection",
    "HyperHead",
    "StreamWeights",
    "diagnose",
    "find_hyper_connections",
    "gate_statistics",
    "gauge_projector",
    "iterations_needed",
    "logit_update",
    "mixing_logits",
    "quotient_jacobian",
    "sensitivity",
    "sinkhorn",
    "sinkhorn_error",
    "sinkhorn_jacobian",
    "spectrum",
    "stream_weights",
]
