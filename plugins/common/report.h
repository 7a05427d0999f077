// Errors: thrown inside the library, caught where TensorRT calls it, and told to TensorRT's logger.
#pragma once

#include <exception>
#include <sstream>
#include <stdexcept>
#include <string>

#include "version.h"

namespace tokenrt::plugin {

struct Refusal : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Throws the parts, written one after another, as a Refusal.
template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    throw Refusal(text.str());
}

// Where messages go: the logger that `finder` finds; without one TensorRT's own, or standard error.
void report_to(nvinfer1::ILoggerFinder* finder) noexcept;

// Never throws, whatever the logger does.
void report(const char* what) noexcept;

// Runs `body`; what it throws is reported and `failed` returned, so that nothing leaves the library.
template <typename Result, typename Body>
Result guarded(Result failed, Body body) noexcept {
    try {
        return body();
    } catch (const std::exception& error) {
        report(error.what());
    } catch (...) {
        report("unknown error");
    }
    return failed;
}

}  // namespace tokenrt::plugin
