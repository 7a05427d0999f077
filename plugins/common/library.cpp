// How TensorRT finds the plugins, by either route. IPluginRegistry::loadLibrary opens the library and asks
// for getCreators; who only opens it (trtexec --staticPlugins, Polygraphy, ctypes) relies on its registering
// itself.
#include <memory>
#include <mutex>

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

    using Creators = std::vector<nvinfer1::IPluginCreatorInterface*>;

    const Creators& listed() const { return listed_; }

    // Enters the creators into TensorRT's own registry, where there is one.
    void enter() {
        nvinfer1::IPluginRegistry* const registry = runtime_registry();
        Creators entered;
        for (auto* const creator : listed_) {
            if (registry != nullptr && registry->registerCreator(*creator, kNamespace)) {
                entered.push_back(creator);
            }
        }
        const std::lock_guard<std::mutex> held(mutex_);
        registry_ = registry;
        entered_ = std::move(entered);
    }

    // Takes them out again: because a registry asks for them itself, or the library is closed. Each is taken
    // out once, by whichever thread comes first, and without the lock: a registry has its own.
    void leave() {
        Creators entered;
        nvinfer1::IPluginRegistry* registry = nullptr;
        {
            const std::lock_guard<std::mutex> held(mutex_);
            entered.swap(entered_);
            registry = registry_;
        }
        for (auto* const creator : entered) {
            registry->deregisterCreator(*creator);
        }
    }

  private:
    std::vector<std::unique_ptr<Creator>> creators_;
    Creators listed_;
    std::mutex mutex_;  // over what follows
    Creators entered_;
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
    return guarded<const char*>("", [&] {
        static const std::string text = [] {
            std::string all = "tensorrt " TOKENRT_TENSORRT "\n" TOKENRT_BUILD;
            for (const auto operation : kOperators) {
                all += operation().described();
            }
            return all;
        }();
        return text.c_str();
    });
}
