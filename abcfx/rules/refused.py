"""The public functions of torch that have no rule on purpose, each with the reason that its error gives."""

from __future__ import annotations

from collections.abc import Mapping

_REASONS = {
    "it works on quantised tensors, which do not train": (
        "choose_qparams_optimized", "dequantize", "fbgemm_linear_fp16_weight",
        "fbgemm_linear_fp16_weight_fp32_activation", "fbgemm_linear_int8_weight",
        "fbgemm_linear_int8_weight_fp32_activation", "fbgemm_linear_quantize_weight", "fbgemm_pack_gemm_matrix_fp16",
        "fbgemm_pack_quantized_matrix", "int_repr", "q_per_channel_axis", "q_per_channel_scales",
        "q_per_channel_zero_points", "q_scale", "q_zero_point", "qscheme", "quantize_per_channel",
        "quantize_per_tensor", "quantize_per_tensor_dynamic", "quantized_batch_norm", "quantized_gru_cell",
        "quantized_lstm_cell", "quantized_max_pool1d", "quantized_max_pool2d", "quantized_max_pool3d",
        "quantized_rnn_relu_cell", "quantized_rnn_tanh_cell",
    ),
    "it keeps statistics of what it sees, which the size of its result depends on": (
        "fused_moving_avg_obs_fake_quant", "native_norm",
    ),
    "it is a part of a batch norm: call torch.nn.functional.batch_norm or nn.SyncBatchNorm": (
        "batch_norm_backward_elemt", "batch_norm_backward_reduce", "batch_norm_elemt", "batch_norm_gather_stats",
        "batch_norm_gather_stats_with_counts", "batch_norm_stats", "batch_norm_update_stats",
    ),
    "it belongs to one backend: call the function of torch.nn.functional": (
        "miopen_batch_norm", "miopen_convolution", "miopen_convolution_add_relu", "miopen_convolution_relu",
        "miopen_convolution_transpose", "miopen_depthwise_convolution", "miopen_rnn",
    ),
    "it takes a sparse tensor apart": (
        "ccol_indices_copy", "col_indices_copy", "crow_indices_copy", "indices_copy", "row_indices_copy",
        "values_copy", "resize_as_sparse",
    ),
    "it is a step of a matrix decomposition, and how its result depends on the matrix is not known": (
        "geqrf", "linalg_householder_product", "linalg_ldl_factor", "linalg_ldl_factor_ex", "linalg_ldl_solve",
        "linalg_lstsq", "linalg_lu", "linalg_lu_factor", "linalg_lu_factor_ex", "linalg_lu_solve", "lobpcg", "lu",
        "lu_solve", "lu_unpack", "orgqr", "ormqr", "pca_lowrank", "svd_lowrank",
    ),
    "its entries are powers of different degrees": ("linalg_vander",),
    "how many entries it returns depends on their values": ("unique", "unique_consecutive"),
    "it has no gradient": ("histogram", "histogramdd", "hash_tensor"),
    "it leaves entries undefined": ("resize", "resize_as"),
    "it calls a function of its own": ("triplet_margin_with_distance_loss",),
}  # fmt: skip

REFUSED: Mapping[str, str] = {name: reason for reason, names in _REASONS.items() for name in names}
"""Plain name of a function -> why it has no rule."""
