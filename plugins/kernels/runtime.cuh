// The one place that knows which compiler reads the kernels: nvcc, or a C++ compiler with the host layer.
#pragma once

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>
#else
#include <simt.h>

#include <cfloat>
#include <type_traits>
#include <utility>
#endif
