"""Arrays on devices: what is there of them without a GPU, and with one."""

from __future__ import annotations

import ctypes
from typing import Any

import kvquant
import numpy as np
import pytest
import torch

CPU, CUDA, METAL = 1, 2, 8  # of DLPack
LEVELS = np.array([-1.0, -0.3, 0.4, 1.0], np.float32)


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class DLManagedTensor(ctypes.Structure):
    _fields_ = [
        ("tensor", DLTensor),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


class OnDevice:
    """float32 numbers that claim to be on a device; nobody may read them."""

    def __init__(self, device: int, size: int = 8) -> None:
        self.device = device
        self.numbers = (ctypes.c_float * size)(*(i / 4 - 1 for i in range(size)))
        self.shape = (ctypes.c_int64 * 1)(size)
        self.managed = DLManagedTensor()
        tensor = self.managed.tensor
        tensor.data = ctypes.cast(self.numbers, ctypes.c_void_p)
        tensor.device_type, tensor.ndim = device, 1
        tensor.code, tensor.bits, tensor.lanes = 2, 32, 1
        tensor.shape = self.shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, **kwargs: Any) -> Any:
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = (
            ctypes.py_object,
            [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
        )
        return new(ctypes.addressof(self.managed), b"dltensor", None)


def test_what_claims_to_be_on_the_cpu_is_read() -> None:
    codes: Any = kvquant.quantize_to_nuq(OnDevice(CPU), LEVELS)  # type: ignore[type-var]
    assert codes.tolist() == [0, 0, 1, 1, 1, 2, 2, 3]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cuda_arrays_are_refused_by_name() -> None:
    with pytest.raises(kvquant.DeviceError, match=r"^x: device cuda:0: .*use \.cpu\(\)"):
        kvquant.quantize_to_nuq(OnDevice(CUDA), LEVELS)  # type: ignore[type-var]


def test_other_devices_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^x is neither on the CPU nor on a CUDA device"):
        kvquant.quantize_to_nuq(OnDevice(METAL), LEVELS)  # type: ignore[type-var]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cuda_tensors_come_in_and_go_out() -> None:
    levels = torch.tensor(LEVELS, device="cuda")
    x = torch.linspace(-1, 1, 16, device="cuda").reshape(2, 8).T
    codes = kvquant.quantize_to_nuq(x, levels)
    assert codes.device == x.device
    assert torch.equal(codes.cpu(), kvquant.quantize_to_nuq(x.cpu(), levels.cpu()))
