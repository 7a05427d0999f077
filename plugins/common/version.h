// The one place that knows releases of TensorRT. Only what exists since 10.0 is used: IPluginV3 with its
// first build capability, so that one source serves 10.3 to 11. Classes move between headers and become
// aliases: elsewhere nothing of TensorRT's is included or declared (docs/decisions/0014).
#pragma once

#include <NvInferRuntime.h>

#if NV_TENSORRT_MAJOR < 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR < 3)
#error "the tokenrt plugins need the headers of TensorRT 10.3 or later"
#endif

#define TOKENRT_TEXT(value) #value
#define TOKENRT_TEXT_OF(value) TOKENRT_TEXT(value)
#define TOKENRT_TENSORRT_MAJOR TOKENRT_TEXT_OF(NV_TENSORRT_MAJOR)
#define TOKENRT_TENSORRT \
    TOKENRT_TENSORRT_MAJOR "." TOKENRT_TEXT_OF(NV_TENSORRT_MINOR) "." TOKENRT_TEXT_OF(NV_TENSORRT_PATCH)

namespace tokenrt::plugin {

// What a node of the model names its plugin by.
constexpr char kNamespace[] = "tokenrt";
constexpr char kVersion[] = "1";

// The libraries that hold TensorRT's registry. The tables of virtual functions differ between majors, so only
// the major that this was compiled for is looked for.
constexpr const char* kRuntimes[] = {
    "libnvinfer.so." TOKENRT_TENSORRT_MAJOR,
    "libnvinfer_lean.so." TOKENRT_TENSORRT_MAJOR,
    "libnvinfer_dispatch.so." TOKENRT_TENSORRT_MAJOR,
};

}  // namespace tokenrt::plugin
