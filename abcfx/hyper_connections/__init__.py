"""Manifold-constrained hyper-connections (mHC): the modules, and six diagnostics of how they behave with width."""

from abcfx.hyper_connections.module import HyperConnection, HyperHead, StreamWeights, stream_weights
from abcfx.hyper_connections.sinkhorn import gauge_projector, sinkhorn, sinkhorn_jacobian

__all__ = [
    "HyperConnection",
    "HyperHead",
    "StreamWeights",
    "gauge_projector",
    "sinkhorn",
    "sinkhorn_jacobian",
    "stream_weights",
]
