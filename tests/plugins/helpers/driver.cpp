// TensorRT's side of the plugin interface, as a C library for the tests: opens a plugin library as a registry
// does, makes plugins, and asks them what a builder and an engine ask.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace {

using namespace nvinfer1;

std::string told;

struct Logger : ILogger, ILoggerFinder {
    void log(Severity, const char* text) noexcept override { told = text; }
    ILogger* findLogger() override { return this; }
} logger;

// A size: a number, or the axis of an input that it is; operations are not expected from these plugins.
struct Size : IDimensionExpr, apiv::VDimensionExpr {
    std::int64_t value;
    bool constant;
    Size(std::int64_t value, bool constant) : value(value), constant(constant) { mImpl = this; }
    bool isConstant() const override { return constant; }
    std::int64_t getConstantValue() const override { return value; }
    bool isSizeTensor() const override { return false; }
    ~Size() noexcept override = default;
};

struct Builder : IExprBuilder, apiv::VExprBuilder {
    std::vector<std::unique_ptr<Size>> made;
    Builder() { mImpl = this; }
    const IDimensionExpr* constant(std::int64_t value) override {
        made.push_back(std::make_unique<Size>(value, true));
        return made.back().get();
    }
    const IDimensionExpr* operation(DimensionOperation, const IDimensionExpr&,
                                    const IDimensionExpr&) override {
        return nullptr;
    }
    const IDimensionExpr* declareSizeTensor(std::int32_t, const IDimensionExpr&,
                                            const IDimensionExpr&) override {
        return nullptr;
    }
    ~Builder() noexcept override = default;
};

template <typename Interface>
Interface* part(void* plugin, PluginCapabilityType type) {
    return static_cast<Interface*>(static_cast<IPluginV3*>(plugin)->getCapabilityInterface(type));
}
IPluginV3OneCore* core(void* plugin) {
    return part<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE);
}
IPluginV3OneBuild* build(void* plugin) {
    return part<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}
IPluginV3OneRuntime* runtime(void* plugin) {
    return part<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

IPluginCreatorV3One* creator(void* library, const char* name) {
    const auto ask =
        reinterpret_cast<IPluginCreatorInterface* const* (*)(std::int32_t&)>(dlsym(library, "getCreators"));
    std::int32_t count = 0;
    IPluginCreatorInterface* const* all = ask(count);
    for (int i = 0; i < count; ++i) {
        auto* const one = static_cast<IPluginCreatorV3One*>(all[i]);
        if (std::strcmp(one->getPluginName(), name) == 0) {
            return one;
        }
    }
    return nullptr;
}

Dims dims(int rank, const std::int64_t* axes) {
    Dims made{};
    made.nbDims = rank;
    for (int i = 0; i < rank; ++i) {
        made.d[i] = axes[i];
    }
    return made;
}

// Tensors come as: their number, the rank of each, all axes in one list, the type of each.
std::vector<PluginTensorDesc> tensors(int count, const int* ranks, const std::int64_t* axes,
                                      const int* types) {
    std::vector<PluginTensorDesc> made;
    for (int i = 0; i < count; axes += ranks[i++]) {
        made.push_back({dims(ranks[i], axes), static_cast<DataType>(types[i]), TensorFormat::kLINEAR, 1.0f});
    }
    return made;
}

std::vector<DynamicPluginTensorDesc> dynamic(const std::vector<PluginTensorDesc>& fixed) {
    std::vector<DynamicPluginTensorDesc> made;
    for (const PluginTensorDesc& one : fixed) {
        made.push_back({one, one.dims, one.dims, one.dims});
    }
    return made;
}

}  // namespace

extern "C" {

const char* driver_told() {
    return told.c_str();
}
void driver_forget() {
    told.clear();
}

void* driver_open(const char* path) {
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        told = dlerror();
        return nullptr;
    }
    reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&logger);
    return library;
}

void* driver_create(void* library, const char* name, int count, const char** names, const int* types,
                    const void** data, const int* lengths, int phase) {
    std::vector<PluginField> fields;
    for (int i = 0; i < count; ++i) {
        fields.emplace_back(names[i], data[i], static_cast<PluginFieldType>(types[i]), lengths[i]);
    }
    const PluginFieldCollection given{count, fields.data()};
    return creator(library, name)->createPlugin("node", &given, static_cast<TensorRTPhase>(phase));
}

// A plugin made as an engine does: from the fields that another one serialises.
void* driver_again(void* library, void* plugin) {
    return creator(library, core(plugin)->getPluginName())
        ->createPlugin("node", runtime(plugin)->getFieldsToSerialize(), TensorRTPhase::kRUNTIME);
}
void* driver_clone(void* plugin) {
    return static_cast<IPluginV3*>(plugin)->clone();
}
void* driver_attach(void* plugin) {
    return runtime(plugin)->attachToContext(nullptr);
}
void driver_destroy(void* plugin) {
    delete static_cast<IPluginV3*>(plugin);
}

// The fields that go into an engine: "name type: numbers;".
const char* driver_fields(void* plugin) {
    static std::string text;
    text.clear();
    const PluginFieldCollection* const given = runtime(plugin)->getFieldsToSerialize();
    for (int i = 0; i < given->nbFields; ++i) {
        const PluginField& field = given->fields[i];
        text += std::string(field.name) + " " + std::to_string(static_cast<int>(field.type)) + ":";
        for (int j = 0; j < field.length; ++j) {
            text += " " + (field.type == PluginFieldType::kFLOAT32
                               ? std::to_string(static_cast<const float*>(field.data)[j])
                               : std::to_string(static_cast<const std::int32_t*>(field.data)[j]));
        }
        text += ";";
    }
    return text.c_str();
}

const char* driver_text(void* plugin, int what) {
    switch (what) {
        case 0:
            return core(plugin)->getPluginName();
        case 1:
            return core(plugin)->getPluginVersion();
        case 2:
            return core(plugin)->getPluginNamespace();
        case 3:
            return build(plugin)->getTimingCacheID();
        default:
            return build(plugin)->getMetadataString();
    }
}

int driver_outputs(void* plugin) {
    return build(plugin)->getNbOutputs();
}

int driver_types(void* plugin, int n_inputs, const int* types, int n_outputs, int* found) {
    std::vector<DataType> given, made(n_outputs);
    for (int i = 0; i < n_inputs; ++i) {
        given.push_back(static_cast<DataType>(types[i]));
    }
    const int failed = build(plugin)->getOutputDataTypes(made.data(), n_outputs, given.data(), n_inputs);
    for (int i = 0; i < n_outputs; ++i) {
        found[i] = static_cast<int>(made[i]);
    }
    return failed;
}

// An axis of -1 is dynamic; found axes are numbers, or -1 - i for the i-th of all axes given.
int driver_shapes(void* plugin, int n_inputs, const int* ranks, const std::int64_t* axes, int n_outputs,
                  int* found_ranks, std::int64_t* found) {
    std::vector<std::unique_ptr<Size>> sizes;
    std::vector<DimsExprs> given(n_inputs), made(n_outputs);
    for (int i = 0, at = 0; i < n_inputs; ++i) {
        given[i].nbDims = ranks[i];
        for (int axis = 0; axis < ranks[i]; ++axis, ++at) {
            const bool fixed = axes[at] >= 0;
            sizes.push_back(std::make_unique<Size>(fixed ? axes[at] : -1 - at, fixed));
            given[i].d[axis] = sizes.back().get();
        }
    }
    Builder builder;
    const int failed =
        build(plugin)->getOutputShapes(given.data(), n_inputs, nullptr, 0, made.data(), n_outputs, builder);
    for (int i = 0; failed == 0 && i < n_outputs; ++i) {
        found_ranks[i] = made[i].nbDims;
        for (int axis = 0; axis < made[i].nbDims; ++axis) {
            *found++ = static_cast<const Size*>(made[i].d[axis])->value;
        }
    }
    return failed;
}

// Whether every place takes its type and format, asked one after another as a builder does.
int driver_supports(void* plugin, int n_inputs, int n_outputs, const int* types, const int* formats) {
    std::vector<DynamicPluginTensorDesc> both(n_inputs + n_outputs);
    for (int i = 0; i < n_inputs + n_outputs; ++i) {
        both[i].desc.type = static_cast<DataType>(types[i]);
        both[i].desc.format = static_cast<TensorFormat>(formats[i]);
        if (!build(plugin)->supportsFormatCombination(i, both.data(), n_inputs, n_outputs)) {
            return 0;
        }
    }
    return 1;
}

int driver_configure(void* plugin, int n_inputs, const int* ranks, const std::int64_t* axes, const int* types,
                     int n_outputs) {
    const auto given = dynamic(tensors(n_inputs, ranks, axes, types));
    const std::vector<DynamicPluginTensorDesc> made(n_outputs);
    return build(plugin)->configurePlugin(given.data(), n_inputs, made.data(), n_outputs);
}

std::size_t driver_workspace(void* plugin, int n_inputs, const int* ranks, const std::int64_t* axes,
                             const int* types, int n_outputs) {
    const auto given = dynamic(tensors(n_inputs, ranks, axes, types));
    const std::vector<DynamicPluginTensorDesc> made(n_outputs);
    return build(plugin)->getWorkspaceSize(given.data(), n_inputs, made.data(), n_outputs);
}

// A profile: the axes of the description, -1 where they are open, then those of the least, the usual and the
// largest shapes, one list after another. `space` gets the workspace. Returns whether configuring failed.
int driver_profile(void* plugin, int n_inputs, const int* ranks, const std::int64_t* axes, const int* types,
                   int n_outputs, std::size_t* space) {
    int count = 0;
    for (int i = 0; i < n_inputs; ++i) {
        count += ranks[i];
    }
    auto given = dynamic(tensors(n_inputs, ranks, axes, types));
    const auto least = tensors(n_inputs, ranks, axes + count, types),
               usual = tensors(n_inputs, ranks, axes + 2 * count, types),
               most = tensors(n_inputs, ranks, axes + 3 * count, types);
    for (std::size_t i = 0; i < given.size(); ++i) {
        given[i].min = least[i].dims;
        given[i].opt = usual[i].dims;
        given[i].max = most[i].dims;
    }
    const std::vector<DynamicPluginTensorDesc> made(n_outputs);
    const int failed = build(plugin)->configurePlugin(given.data(), n_inputs, made.data(), n_outputs);
    *space = build(plugin)->getWorkspaceSize(given.data(), n_inputs, made.data(), n_outputs);
    return failed;
}

int driver_shape_change(void* plugin, int n_inputs, const int* ranks, const std::int64_t* axes,
                        const int* types, int n_outputs) {
    const auto given = tensors(n_inputs, ranks, axes, types);
    const std::vector<PluginTensorDesc> made(n_outputs);
    return runtime(plugin)->onShapeChange(given.data(), n_inputs, made.data(), n_outputs);
}

int driver_enqueue(void* plugin, int n_inputs, const int* ranks, const std::int64_t* axes, const int* types,
                   int n_outputs, const void** inputs, void** outputs, void* workspace) {
    const auto given = tensors(n_inputs, ranks, axes, types);
    const std::vector<PluginTensorDesc> made(n_outputs);
    return runtime(plugin)->enqueue(given.data(), made.data(), inputs, outputs, workspace, nullptr);
}

// Two contexts at once, each on a thread of its own with outputs and workspace of its own, `rounds` times;
// beside it what a process may ask of the library at any time. Returns how many calls failed.
int driver_threads(void* library, void* const* contexts, int n_inputs, const int* ranks,
                   const std::int64_t* axes, const int* types, int n_outputs, const void** inputs,
                   void** const* outputs, void* const* workspaces, int rounds) {
    int failed[2] = {0, 0};
    const auto run = [&](int i) {
        const auto ask = reinterpret_cast<IPluginCreatorInterface* const* (*)(std::int32_t&)>(
            dlsym(library, "getCreators"));
        const auto finder = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
        const auto text = reinterpret_cast<const char* (*)()>(dlsym(library, "tokenrt_plugin_library"));
        for (int round = 0; round < rounds; ++round) {
            std::int32_t count = 0;
            finder(&logger);
            failed[i] += ask(count) == nullptr || text()[0] == '\0';
            failed[i] += driver_shape_change(contexts[i], n_inputs, ranks, axes, types, n_outputs);
            failed[i] += driver_enqueue(contexts[i], n_inputs, ranks, axes, types, n_outputs, inputs,
                                        outputs[i], workspaces[i]);
            IPluginV3* const copy = static_cast<IPluginV3*>(contexts[i])->clone();
            failed[i] += copy == nullptr || runtime(copy)->getFieldsToSerialize() == nullptr;
            delete copy;
        }
    };
    std::thread other(run, 1);
    run(0);
    other.join();
    return failed[0] + failed[1];
}

}  // extern "C"
