#include "runtime.h"

#include <dlfcn.h>

namespace tokenrt::plugin {

namespace {

// Python loads TensorRT out of the global scope, so a search through all symbols would miss it; it would also
// find TensorRT-RTX, whose networks take no plugins.
void* symbol(const char* name) noexcept {
    for (const char* const library : kRuntimes) {
        if (void* const handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD)) {
            void* const found = dlsym(handle, name);
            dlclose(handle);  // gives back the count that dlopen took, not the library
            if (found != nullptr) {
                return found;
            }
        }
    }
    return nullptr;
}

template <typename Result>
Result* called(const char* name) noexcept {
    void* const found = symbol(name);
    return found != nullptr ? reinterpret_cast<Result* (*)() noexcept>(found)() : nullptr;
}

}  // namespace

nvinfer1::IPluginRegistry* runtime_registry() noexcept {
    return called<nvinfer1::IPluginRegistry>("getPluginRegistry");
}

nvinfer1::ILogger* runtime_logger() noexcept {
    return called<nvinfer1::ILogger>("getLogger");
}

}  // namespace tokenrt::plugin
