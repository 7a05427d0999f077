// The attributes of an operator: what they are called, what they may be, and the values of one node.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "version.h"

namespace tokenrt::plugin {

enum class Kind {
    kInt,    // ONNX int
    kFloat,  // ONNX float, finite
    kSize,   // ONNX ints, exactly one: a number that sets a size
    kList,   // ONNX ints, any number of them
};

struct Field {
    const char* name;
    Kind kind;
    int least = 0, most = 0;  // of every number; kFloat is unbounded where they are equal
};

class Values {
  public:
    // Reads the fields of a node. Refuses, with the name of the field: one that is missing, unknown, given
    // twice, of another type or length, or out of range. A list that is missing is empty: nothing says that a
    // serialiser keeps a field without data.
    Values(const std::vector<Field>& fields, const nvinfer1::PluginFieldCollection* given);

    int number(const char* name) const;
    float real(const char* name) const;
    const std::vector<std::int32_t>& list(const char* name) const;

    // The fields as TensorRT keeps them in an engine, empty lists left out; they point into this object.
    std::vector<nvinfer1::PluginField> written() const;

    // One line: numbers by value, lists by length, which is what the choice of a kernel can depend on.
    std::string text() const;

  private:
    struct Value {
        Field field;
        bool given = false;
        std::vector<std::int32_t> numbers;
        float real = 0;
    };
    const Value& find(const char* name) const;
    static void read(Value& value, const nvinfer1::PluginField& from);

    std::vector<Value> values_;
};

// The fields without values, as a creator shows them.
std::vector<nvinfer1::PluginField> described(const std::vector<Field>& fields);

}  // namespace tokenrt::plugin
