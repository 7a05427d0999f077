#include "report.h"

#include <atomic>
#include <cstdio>

#include "runtime.h"

namespace tokenrt::plugin {

namespace {

std::atomic<nvinfer1::ILoggerFinder*> told{nullptr};

nvinfer1::ILogger* logger() {
    nvinfer1::ILoggerFinder* const finder = told.load();
    nvinfer1::ILogger* const found = finder != nullptr ? finder->findLogger() : nullptr;
    return found != nullptr ? found : runtime_logger();
}

}  // namespace

void report_to(nvinfer1::ILoggerFinder* finder) noexcept {
    told.store(finder);
}

void report(const char* what) noexcept {
    try {
        const std::string text = std::string("tokenrt plugins: ") + what;
        if (nvinfer1::ILogger* const to = logger()) {
            to->log(nvinfer1::ILogger::Severity::kERROR, text.c_str());
        } else {
            std::fprintf(stderr, "%s\n", text.c_str());
        }
        nvinfer1::IPluginRegistry* const registry = runtime_registry();
        if (nvinfer1::IErrorRecorder* const recorder =
                registry != nullptr ? registry->getErrorRecorder() : nullptr) {
            recorder->reportError(nvinfer1::ErrorCode::kINVALID_ARGUMENT, text.c_str());
        }
    } catch (...) {
        // There is nobody left to tell.
    }
}

}  // namespace tokenrt::plugin
