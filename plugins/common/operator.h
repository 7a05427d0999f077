// What an operator is, as its file in plugins/token_* says it; everything TensorRT asks is answered from
// this.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "fields.h"

namespace tokenrt::plugin {

enum class Type {
    kOwn,   // float32, float16 or bfloat16: the model's own, the same for every tensor marked so
    kFree,  // one of these, whatever the others are
    kFloat32,
    kInt64,
};

// `shape` has a letter an axis, as the operator's documentation: equal letters are equal sizes. "1" is an
// axis of one, and "*" a tensor of any shape of up to four axes, which the operator looks at itself.
struct Tensor {
    const char* name;
    const char* shape;
    Type type;
};

constexpr std::int64_t kUnknown = -1;

// ONNX numbers of the types that the kernels take as a model's own; 0 for any other.
constexpr int number_of(nvinfer1::DataType type) {
    return type == nvinfer1::DataType::kFLOAT  ? 1
           : type == nvinfer1::DataType::kHALF ? 10
           : type == nvinfer1::DataType::kBF16 ? 16
                                               : 0;
}

// Sizes by letter.
class Sizes {
  public:
    Sizes() { sizes_.fill(kUnknown); }
    std::int64_t operator[](char letter) const { return sizes_.at(static_cast<std::size_t>(letter - 'A')); }
    void set(char letter, std::int64_t size) { sizes_.at(static_cast<std::size_t>(letter - 'A')) = size; }
    int of(char letter) const { return static_cast<int>((*this)[letter]); }

  private:
    std::array<std::int64_t, 26> sizes_;
};

// One run: everything a launcher takes.
struct Call {
    const Values& values;
    const Sizes& sizes;
    int type;                                     // ONNX number of the model's own type
    const nvinfer1::PluginTensorDesc* described;  // the inputs
    const void* const* inputs;
    void* const* outputs;
    const std::vector<const std::int32_t*>& lists;  // in device memory, in the order of Operator::lists
    void* workspace;
    cudaStream_t stream;

    // The ONNX number of the type of input `i`.
    int type_of(int i) const { return number_of(described[i].type); }
    template <typename T>
    const T* in(int i) const {
        return static_cast<const T*>(inputs[i]);
    }
    template <typename T>
    T* out(int i) const {
        return static_cast<T*>(outputs[i]);
    }
};

class Operator {
  public:
    const char* name;
    std::vector<Field> fields;
    std::vector<Tensor> inputs, outputs;
    // Letters whose size a field sets: its number, or the length of its list.
    std::vector<std::pair<char, const char*>> set_by;
    // Fields whose lists the kernels read in device memory.
    std::vector<const char*> lists;

    virtual ~Operator() = default;

    // Refuses values of fields that do not fit together.
    virtual void check(const Values&) const {}
    // Refuses sizes that do not fit the values; sizes not known yet are kUnknown.
    virtual void fit(const Values&, const Sizes&) const {}
    // The ONNX number of the type that Type::kOwn stands for, 0 where the values leave it open.
    virtual int own_type(const Values&) const { return 0; }
    virtual std::size_t workspace(const Values&, const Sizes&) const { return 0; }
    virtual cudaError_t run(const Call&) const = 0;

    // The sizes that fields set.
    Sizes given(const Values& values) const;
    // Enters the axes of input `i`; refuses what contradicts earlier ones or exceeds a limit. There may be no
    // images at all.
    void enter(Sizes& sizes, int i, int rank, const std::int64_t* axes) const;
    // Refuses more work than one launch should hold (limits.h).
    void bound(const Values& values, const Sizes& sizes) const;
    // A line each for the name, the fields, the inputs and the outputs.
    std::string described() const;

  protected:
    // Refuses a field `type` that is no number of number_of.
    static void check_type(const Values& values);

    Operator(const char* name, std::vector<Field> fields, std::vector<Tensor> inputs,
             std::vector<Tensor> outputs, std::vector<std::pair<char, const char*>> set_by = {},
             std::vector<const char*> lists = {})
        : name(name),
          fields(std::move(fields)),
          inputs(std::move(inputs)),
          outputs(std::move(outputs)),
          set_by(std::move(set_by)),
          lists(std::move(lists)) {}

  private:
    // The largest size of an axis.
    std::int64_t most(char letter) const;
};

}  // namespace tokenrt::plugin
