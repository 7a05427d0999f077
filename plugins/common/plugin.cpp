#include "plugin.h"

#include <algorithm>
#include <cstring>

#include "report.h"

namespace tokenrt::plugin {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

namespace {

constexpr std::int32_t kFailed = 1;
constexpr std::size_t kAlignment = 16;

// The first tensor of the model's own type, -1 without one.
int first_own(const std::vector<Tensor>& tensors) {
    const auto found =
        std::find_if(tensors.begin(), tensors.end(), [](const Tensor& t) { return t.type == Type::kOwn; });
    return found == tensors.end() ? -1 : static_cast<int>(found - tensors.begin());
}

}  // namespace

// Runs `body` and says, where it refuses, for which operator.
template <typename Result, typename Body>
Result Plugin::answer(Result failed, Body body) const noexcept {
    return guarded(failed, [&] {
        try {
            return body();
        } catch (const Refusal& why) {
            refuse(operator_.name, ": ", why.what());
        }
    });
}

Plugin::Plugin(const Operator& op, Values values)
    : operator_(op), values_(std::move(values)), text_(std::string(op.name) + " " + values_.text()) {
    operator_.check(values_);
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE:
            return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD:
            return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME:
            return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
    return answer<nvinfer1::IPluginV3*>(nullptr, [&] {
        auto copy = std::make_unique<Plugin>(operator_, values_);
        if (memory_) {
            copy->upload();
        }
        return copy.release();
    });
}

std::int32_t Plugin::getNbOutputs() const noexcept {
    return static_cast<std::int32_t>(operator_.outputs.size());
}

std::int32_t Plugin::getOutputDataTypes(DataType* outputs, std::int32_t n_outputs, const DataType* inputs,
                                        std::int32_t n_inputs) const noexcept {
    return answer(kFailed, [&] {
        expect(n_inputs, n_outputs);
        const int own = first_own(operator_.inputs);
        for (int i = 0; i < n_outputs; ++i) {
            const Type type = operator_.outputs[static_cast<std::size_t>(i)].type;
            outputs[i] = type == Type::kInt64             ? DataType::kINT64
                         : type == Type::kOwn && own >= 0 ? inputs[own]
                                                          : DataType::kFLOAT;
        }
        return 0;
    });
}

std::int32_t Plugin::getOutputShapes(const DimsExprs* inputs, std::int32_t n_inputs, const DimsExprs*,
                                     std::int32_t, DimsExprs* outputs, std::int32_t n_outputs,
                                     nvinfer1::IExprBuilder& builder) noexcept {
    return answer(kFailed, [&] {
        expect(n_inputs, n_outputs);
        const Sizes set = operator_.given(values_);
        Sizes known = set;
        const nvinfer1::IDimensionExpr* by_letter[26] = {};
        for (int i = 0; i < n_inputs; ++i) {
            std::int64_t axes[Dims::MAX_DIMS];
            for (int axis = 0; axis < inputs[i].nbDims; ++axis) {
                const nvinfer1::IDimensionExpr* const size = inputs[i].d[axis];
                axes[axis] = size->isConstant() ? size->getConstantValue() : kUnknown;
            }
            operator_.enter(known, i, inputs[i].nbDims, axes);
            const char* const letters = operator_.inputs[static_cast<std::size_t>(i)].shape;
            for (int axis = 0; letters[axis] != '*' && letters[axis] != '\0'; ++axis) {
                if (letters[axis] != '1' && by_letter[letters[axis] - 'A'] == nullptr) {
                    by_letter[letters[axis] - 'A'] = inputs[i].d[axis];
                }
            }
        }
        operator_.fit(values_, known);
        operator_.bound(values_, known);
        for (int i = 0; i < n_outputs; ++i) {
            const std::string letters = operator_.outputs[static_cast<std::size_t>(i)].shape;
            outputs[i].nbDims = static_cast<std::int32_t>(letters.size());
            for (std::size_t axis = 0; axis < letters.size(); ++axis) {
                const char letter = letters[axis];
                const std::int64_t fixed = letter == '1' ? 1 : set[letter];
                outputs[i].d[axis] = fixed != kUnknown ? builder.constant(fixed) : by_letter[letter - 'A'];
            }
        }
        return 0;
    });
}

bool Plugin::supportsFormatCombination(std::int32_t place, const DynamicPluginTensorDesc* both,
                                       std::int32_t n_inputs, std::int32_t n_outputs) noexcept {
    return answer(false, [&] {
        expect(n_inputs, n_outputs);
        const auto at = static_cast<std::size_t>(place);
        const Tensor& tensor =
            place < n_inputs ? operator_.inputs.at(at) : operator_.outputs.at(at - operator_.inputs.size());
        const PluginTensorDesc& asked = both[place].desc;
        if (asked.format != nvinfer1::TensorFormat::kLINEAR) {
            return false;
        }
        if (tensor.type == Type::kFree) {
            return number_of(asked.type) != 0;
        }
        if (tensor.type != Type::kOwn) {
            return asked.type == (tensor.type == Type::kInt64 ? DataType::kINT64 : DataType::kFLOAT);
        }
        const int own = first_own(operator_.inputs), wanted = operator_.own_type(values_);
        if (own < place) {
            return asked.type == both[own].desc.type;
        }
        const int number = number_of(asked.type);
        return number != 0 && (wanted == 0 || number == wanted);
    });
}

std::int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* inputs, std::int32_t n_inputs,
                                     const DynamicPluginTensorDesc*, std::int32_t n_outputs) noexcept {
    return answer(kFailed, [&] {
        expect(n_inputs, n_outputs);
        largest(inputs);
        return 0;
    });
}

std::size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, std::int32_t n_inputs,
                                     const DynamicPluginTensorDesc*, std::int32_t n_outputs) const noexcept {
    return answer(std::size_t{0}, [&] {
        expect(n_inputs, n_outputs);
        return operator_.workspace(values_, largest(inputs));
    });
}

std::int32_t Plugin::onShapeChange(const PluginTensorDesc* inputs, std::int32_t n_inputs,
                                   const PluginTensorDesc*, std::int32_t n_outputs) noexcept {
    return answer(kFailed, [&] {
        expect(n_inputs, n_outputs);
        sizes(inputs);
        // It comes before every run and may fail, outside of a capture: whoever never attached this to a
        // context, as a builder that times it, gets the lists here.
        if (lists_.size() != operator_.lists.size()) {
            upload();
        }
        return 0;
    });
}

std::int32_t Plugin::enqueue(const PluginTensorDesc* described, const PluginTensorDesc*,
                             const void* const* inputs, void* const* outputs, void* workspace,
                             cudaStream_t stream) noexcept {
    return answer(kFailed, [&] {
        const Sizes now = sizes(described);
        if (now['B'] == 0) {
            return 0;  // no images: a grid of no blocks would be an error
        }
        const Call call{values_, now,    own_type(described), described, inputs,
                        outputs, lists_, workspace,           stream};
        const cudaError_t state = operator_.run(call);
        if (state != cudaSuccess) {
            refuse("CUDA error ", static_cast<int>(state), ": ", cudaGetErrorString(state));
        }
        return 0;
    });
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
    return answer<nvinfer1::IPluginV3*>(nullptr, [&] {
        auto copy = std::make_unique<Plugin>(operator_, values_);
        copy->upload();
        return copy.release();
    });
}

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
    return answer<const nvinfer1::PluginFieldCollection*>(nullptr, [&] {
        written_ = values_.written();
        collection_ = {static_cast<std::int32_t>(written_.size()), written_.data()};
        return &collection_;
    });
}

// Copies the lists to the device, once a context and all in one piece, each from an aligned place on. Running
// then allocates and copies nothing.
void Plugin::upload() {
    std::vector<std::int32_t> all;
    std::vector<std::size_t> starts;
    for (const char* const name : operator_.lists) {
        const auto& list = values_.list(name);
        starts.push_back(all.size());
        all.insert(all.end(), list.begin(), list.end());
        all.resize((all.size() + kAlignment - 1) / kAlignment * kAlignment);
    }
    if (all.empty()) {
        lists_.assign(operator_.lists.size(), nullptr);
        return;
    }
    lists_.clear();
    void* memory = nullptr;
    cudaError_t state = cudaMalloc(&memory, all.size() * sizeof(std::int32_t));
    if (state == cudaSuccess) {
        memory_.reset(memory);
        state = cudaMemcpy(memory, all.data(), all.size() * sizeof(std::int32_t), cudaMemcpyHostToDevice);
    }
    if (state != cudaSuccess) {
        refuse("copying lists to the device: CUDA error ", static_cast<int>(state), ": ",
               cudaGetErrorString(state));
    }
    for (const std::size_t start : starts) {
        lists_.push_back(static_cast<const std::int32_t*>(memory) + start);
    }
}

void Plugin::expect(std::int32_t n_inputs, std::int32_t n_outputs) const {
    const auto wanted_inputs = static_cast<std::int32_t>(operator_.inputs.size());
    if (n_inputs != wanted_inputs || n_outputs != getNbOutputs()) {
        refuse("takes ", wanted_inputs, " inputs and gives ", getNbOutputs(), " outputs, got ", n_inputs,
               " and ", n_outputs);
    }
}

Sizes Plugin::sizes(const PluginTensorDesc* inputs) const {
    Sizes found = operator_.given(values_);
    for (std::size_t i = 0; i < operator_.inputs.size(); ++i) {
        operator_.enter(found, static_cast<int>(i), inputs[i].dims.nbDims, inputs[i].dims.d);
    }
    operator_.fit(values_, found);
    operator_.bound(values_, found);
    return found;
}

Sizes Plugin::largest(const DynamicPluginTensorDesc* inputs) const {
    std::vector<PluginTensorDesc> at_most;
    for (std::size_t i = 0; i < operator_.inputs.size(); ++i) {
        at_most.push_back(inputs[i].desc);
        at_most.back().dims = inputs[i].max;
    }
    return sizes(at_most.data());
}

int Plugin::own_type(const PluginTensorDesc* inputs) const {
    const int own = first_own(operator_.inputs);
    return own < 0 ? 0 : number_of(inputs[own].type);
}

}  // namespace tokenrt::plugin
