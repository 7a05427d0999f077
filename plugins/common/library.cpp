// How TensorRT finds the plugins, by either route. IPluginRegistry::loadLibrary opens the library and asks
// for getCreators; who only opens it (trtexec --staticPlugins, Polygraphy, ctypes) relies on its registering
// itself.
#include <memory>

#include "creator.h"
#include "operators.h"
#include "report.h"
#include "runtime.h"

#define TOKENRT_EXPORT extern "C" __attribute__((visibility("default")))

#if __has_include("tokenrt_build.h")
#include "tokenrt_build.h"  // written by whoever builds: CUDA's release and the architectures
#else
#define TOKENRT_BUILD ""
#endif

namespace tokenrt::plugin {

namespace {

class Library {
  public:
    Library() {
        for (const auto operation : kOperators) {
            creators_.push_back(std::make_unique<Creator>(operation()));
            listed_.push_back(creators_.back().get());
        }
    }

    const std::vector<nvinfer1::IPluginCreatorInterface*>& listed() const { return listed_; }

    // Enters the creators into TensorRT's own registry, where there is one.
    void enter() {
        registry_ = runtime_registry();
        for (auto* const creator : listed_) {
            if (registry_ != nullptr && registry_->registerCreator(*creator, kNamespace)) {
                entered_.push_back(creator);
            }
        }
    }

    // Takes them out again: because a registry asks for them itself, or the library is closed.
    void leave() {
        for (auto* const creator : entered_) {
            registry_->deregisterCreator(*creator);
        }
        entered_.clear();
    }

  private:
    std::vector<std::unique_ptr<Creator>> creators_;
    std::vector<nvinfer1::IPluginCreatorInterface*> listed_, entered_;
    nvinfer1::IPluginRegistry* registry_ = nullptr;
};

// Made when the library is opened, which touches no GPU.
struct Opened {
    Library library;
    Opened() { library.enter(); }
    ~Opened() { library.leave(); }
} opened;

}  // namespace

}  // namespace tokenrt::plugin

TOKENRT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
    using namespace tokenrt::plugin;
    return guarded<nvinfer1::IPluginCreatorInterface* const*>(nullptr, [&] {
        opened.library.leave();
        count = static_cast<std::int32_t>(opened.library.listed().size());
        return opened.library.listed().data();
    });
}

TOKENRT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    tokenrt::plugin::report_to(finder);
}

// What this library is and what its creators take, a line each; for `tokenrt plugins info` and tests.
TOKENRT_EXPORT const char* tokenrt_plugin_library() {
    using namespace tokenrt::plugin;
    static std::string text;
    return guarded<const char*>("", [&] {
        text = "tensorrt " TOKENRT_TENSORRT "\n" TOKENRT_BUILD;
        for (const auto operation : kOperators) {
            text += operation().described();
        }
        return text.c_str();
    });
}
