// One node of an engine: the IPluginV3 of every operator.
#pragma once

#include <memory>

#include "operator.h"

namespace tokenrt::plugin {

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
  public:
    // Refuses values that do not fit together.
    Plugin(const Operator& op, Values values);

    nvinfer1::IPluginCapability* getCapabilityInterface(
        nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    const char* getPluginName() const noexcept override { return operator_.name; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }

    std::int32_t getNbOutputs() const noexcept override;
    std::int32_t getOutputDataTypes(nvinfer1::DataType* outputs, std::int32_t n_outputs,
                                    const nvinfer1::DataType* inputs,
                                    std::int32_t n_inputs) const noexcept override;
    std::int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t n_inputs,
                                 const nvinfer1::DimsExprs* shapes, std::int32_t n_shapes,
                                 nvinfer1::DimsExprs* outputs, std::int32_t n_outputs,
                                 nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(std::int32_t place, const nvinfer1::DynamicPluginTensorDesc* both,
                                   std::int32_t n_inputs, std::int32_t n_outputs) noexcept override;
    std::int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t n_inputs,
                                 const nvinfer1::DynamicPluginTensorDesc* outputs,
                                 std::int32_t n_outputs) noexcept override;
    std::size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t n_inputs,
                                 const nvinfer1::DynamicPluginTensorDesc* outputs,
                                 std::int32_t n_outputs) const noexcept override;
    const char* getTimingCacheID() noexcept override { return text_.c_str(); }
    const char* getMetadataString() noexcept override { return text_.c_str(); }

    std::int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, std::int32_t n_inputs,
                               const nvinfer1::PluginTensorDesc* outputs,
                               std::int32_t n_outputs) noexcept override;
    std::int32_t enqueue(const nvinfer1::PluginTensorDesc* described,
                         const nvinfer1::PluginTensorDesc* outputs_described, const void* const* inputs,
                         void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

  private:
    struct Free {
        void operator()(void* memory) const noexcept { cudaFree(memory); }
    };
    void upload();  // the lists to the device, unless that fails
    void expect(std::int32_t n_inputs, std::int32_t n_outputs) const;
    Sizes sizes(const nvinfer1::PluginTensorDesc* inputs) const;
    Sizes largest(const nvinfer1::DynamicPluginTensorDesc* inputs) const;
    int own_type(const nvinfer1::PluginTensorDesc* inputs) const;
    template <typename Result, typename Body>
    Result answer(Result failed, Body body) const noexcept;

    const Operator& operator_;
    const Values values_;
    const std::string text_;
    std::vector<nvinfer1::PluginField> written_;
    nvinfer1::PluginFieldCollection collection_{};
    std::unique_ptr<void, Free> memory_;
    std::vector<const std::int32_t*> lists_;
};

}  // namespace tokenrt::plugin
