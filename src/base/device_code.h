// What marks functions that run inside CUDA kernels. They are written so that a C++ compiler takes
// them, too: the emulation of ops/cuda_block.h runs the same functions on the CPU.
#pragma once

#ifdef __CUDACC__
#define KVQUANT_DEVICE __device__ __forceinline__
#define KVQUANT_UNROLL _Pragma("unroll")
#else
#define KVQUANT_DEVICE inline
#define KVQUANT_UNROLL
#endif
