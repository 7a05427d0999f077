// Makes the plugins of one operator, when a model is parsed and when an engine is loaded.
#pragma once

#include "operator.h"

namespace tokenrt::plugin {

class Creator final : public nvinfer1::IPluginCreatorV3One {
  public:
    explicit Creator(const Operator& op);

    nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* given,
                                      nvinfer1::TensorRTPhase phase) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
    const char* getPluginName() const noexcept override { return operator_.name; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }

  private:
    const Operator& operator_;
    const std::vector<nvinfer1::PluginField> shown_;
    const nvinfer1::PluginFieldCollection collection_;
};

}  // namespace tokenrt::plugin
