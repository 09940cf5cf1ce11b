from __future__ import annotations

import kvquant
import numpy as np
import pytest
import torch


def test_the_call_of_the_published_plan() -> None:
    matrix = kvquant.BlockedCSCMatrix(num_rows=128, block_size=256)
    rows, values = torch.tensor([3, 70, 127]), torch.tensor([1.5, -2.0, 0.25])
    matrix.append_token(rows, values)
    matrix.append(rows[:1], values[:1])
    dense = np.zeros((128, 2), np.float32)
    dense[[3, 70, 127], 0] = [1.5, -2.0, 0.25]
    dense[3, 1] = 1.5
    np.testing.assert_array_equal(matrix.to_dense(), dense)


def test_batches_and_standard_forms() -> None:
    matrix = kvquant.BlockedCSRMatrix(num_cols=300, block_size=64, value_type="float16")
    offsets, indices = np.array([0, 2, 2, 3]), np.array([5, 299, 0], np.int32)
    values = np.array([0.5, -1, 2], np.float32)
    for _ in range(50):
        matrix.append_batch(offsets, indices, values)
    matrix.batch_append(offsets, indices, values)
    assert (matrix.num_rows, matrix.num_cols, matrix.num_nonzeros) == (153, 300, 153)
    found_offsets, found_indices, found_values = matrix.to_standard_csr()
    assert found_offsets.dtype == np.int64
    assert found_offsets[-1] == 153
    np.testing.assert_array_equal(found_indices.reshape(51, 3), np.tile(indices, (51, 1)))
    np.testing.assert_array_equal(found_values.reshape(51, 3), np.tile(values, (51, 1)))
    bytes_ = matrix.memory_footprint()
    assert bytes_["total_bytes"] == bytes_["offset_bytes"] + bytes_["data_bytes"]
    assert bytes_["num_nonzeros"] == 153
    assert bytes_["data_bytes"] >= 153 * 4


def test_a_refused_token_changes_nothing() -> None:
    matrix = kvquant.BlockedCSCMatrix(num_rows=8, block_size=64)
    for indices, message in (([5, 2], "ascend"), ([8], "8"), ([-1], "-1")):
        with pytest.raises(ValueError, match=message):
            matrix.append_token(np.array(indices), np.ones(len(indices), np.float32))
    with pytest.raises(ValueError, match="not an integer type"):
        matrix.append_token(np.ones(1, np.float32), np.ones(1, np.float32))
    with pytest.raises(ValueError, match="values is float64"):
        matrix.append_token(np.array([1]), np.ones(1))
    assert matrix.num_tokens == 0
    with pytest.raises(ValueError, match="value_type"):
        kvquant.BlockedCSRMatrix(8, 64, "int8")
    with pytest.raises(ValueError, match="block_size"):
        kvquant.BlockedCSRMatrix(8, 0)
