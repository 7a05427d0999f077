// Stands in for the library that holds TensorRT's registry: who registered what, and how often.
#include <NvInferRuntime.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

namespace {

using namespace nvinfer1;

struct Registry : IPluginRegistry {
    std::vector<IPluginCreatorInterface*> held;
    std::string text;

    bool registerCreator(IPluginCreatorInterface& creator, const char* given) noexcept override {
        auto& one = static_cast<IPluginCreatorV3One&>(creator);
        if (std::strcmp(one.getPluginNamespace(), given) != 0 ||
            getCreator(one.getPluginName(), one.getPluginVersion(), given) != nullptr) {
            return false;
        }
        held.push_back(&creator);
        return true;
    }
    bool deregisterCreator(const IPluginCreatorInterface& creator) noexcept override {
        const auto found = std::find(held.begin(), held.end(), &creator);
        const bool here = found != held.end();
        if (here) {
            held.erase(found);
        }
        return here;
    }
    IPluginCreatorInterface* getCreator(const char* name, const char* version,
                                        const char* space) noexcept override {
        for (auto* const creator : held) {
            auto* const one = static_cast<IPluginCreatorV3One*>(creator);
            if (std::strcmp(one->getPluginName(), name) == 0 &&
                std::strcmp(one->getPluginVersion(), version) == 0 &&
                std::strcmp(one->getPluginNamespace(), space) == 0) {
                return creator;
            }
        }
        return nullptr;
    }
    IPluginCreatorInterface* const* getAllCreators(std::int32_t* const count) const noexcept override {
        *count = static_cast<std::int32_t>(held.size());
        return held.data();
    }

    void setErrorRecorder(IErrorRecorder* const) noexcept override {}
    IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
    bool isParentSearchEnabled() const override { return false; }
    void setParentSearchEnabled(bool const) override {}
    PluginLibraryHandle loadLibrary(const char*) noexcept override { return nullptr; }
    void deregisterLibrary(PluginLibraryHandle) noexcept override {}
    IPluginResource* acquirePluginResource(const char*, IPluginResource*) noexcept override {
        return nullptr;
    }
    std::int32_t releasePluginResource(const char*) noexcept override { return 0; }
    IPluginCreatorInterface* const* getAllCreatorsRecursive(std::int32_t* const count) noexcept override {
        return getAllCreators(count);
    }
#if NV_TENSORRT_MAJOR < 11
    // Of plugins before IPluginV3.
    bool registerCreator(IPluginCreator&, const char* const) noexcept override { return false; }
    IPluginCreator* const* getPluginCreatorList(std::int32_t* const) const noexcept override {
        return nullptr;
    }
    IPluginCreator* getPluginCreator(const char* const, const char* const,
                                     const char* const) noexcept override {
        return nullptr;
    }
    bool deregisterCreator(const IPluginCreator&) noexcept override { return false; }
#endif
} registry;

}  // namespace

extern "C" nvinfer1::IPluginRegistry* getPluginRegistry() noexcept {
    return &registry;
}

// The names of the creators, with a space before each.
extern "C" const char* registry_names() {
    registry.text.clear();
    for (auto* const creator : registry.held) {
        registry.text +=
            std::string(" ") + static_cast<nvinfer1::IPluginCreatorV3One*>(creator)->getPluginName();
    }
    return registry.text.c_str();
}

// What IPluginRegistry::loadLibrary does with a library it has opened.
extern "C" int registry_take(nvinfer1::IPluginCreatorInterface* const* (*creators)(std::int32_t&)) {
    std::int32_t count = 0;
    nvinfer1::IPluginCreatorInterface* const* all = creators(count);
    int taken = 0;
    for (int i = 0; i < count; ++i) {
        auto* const one = static_cast<nvinfer1::IPluginCreatorV3One*>(all[i]);
        taken += registry.registerCreator(*one, one->getPluginNamespace());
    }
    return taken;
}
