// TensorRT as this process has loaded it. The library is not linked against TensorRT: it loads without it,
// into the registry of whoever asks for its creators.
#pragma once

#include "version.h"

namespace tokenrt::plugin {

// TensorRT's own registry and logger; null where the process has not loaded TensorRT of the right major.
nvinfer1::IPluginRegistry* runtime_registry() noexcept;
nvinfer1::ILogger* runtime_logger() noexcept;

}  // namespace tokenrt::plugin
