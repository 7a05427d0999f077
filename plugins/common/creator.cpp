#include "creator.h"

#include "plugin.h"
#include "report.h"

namespace tokenrt::plugin {

Creator::Creator(const Operator& op)
    : operator_(op),
      shown_(described(op.fields)),
      collection_{static_cast<std::int32_t>(shown_.size()), shown_.data()} {}

nvinfer1::IPluginV3* Creator::createPlugin(const char* name, const nvinfer1::PluginFieldCollection* given,
                                           nvinfer1::TensorRTPhase) noexcept {
    return guarded<nvinfer1::IPluginV3*>(nullptr, [&] {
        try {
            return new Plugin(operator_, Values(operator_.fields, given));
        } catch (const Refusal& why) {
            refuse(operator_.name, " node '", name != nullptr ? name : "", "': ", why.what());
        }
    });
}

}  // namespace tokenrt::plugin
