#include "operator.h"

#include <cstring>

#include "limits.h"
#include "report.h"

namespace tokenrt::plugin {

namespace {

constexpr int kMostAxes = 4;

const Limits& limits_of(const char* name) {
    for (const Limits& one : kLimits) {
        if (std::strcmp(one.name, name) == 0) {
            return one;
        }
    }
    refuse("no limits are declared for ", name, "; python -m tokenrt.plugins.contracts writes them");
}

}  // namespace

void Operator::check_type(const Values& values) {
    const int type = values.number("type");
    for (const auto known :
         {nvinfer1::DataType::kFLOAT, nvinfer1::DataType::kHALF, nvinfer1::DataType::kBF16}) {
        if (type == number_of(known)) {
            return;
        }
    }
    refuse("field 'type' must be 1 (float32), 10 (float16) or 16 (bfloat16), got ", type);
}

std::int64_t Operator::most(char letter) const {
    for (const auto& axis : limits_of(name).axes) {
        if (axis.letter == letter) {
            return axis.most;
        }
    }
    return letter == 'C' || letter == 'D' ? kMostElements : kMostTokens;
}

void Operator::bound(const Values& values, const Sizes& sizes) const {
    const Limits& limits = limits_of(name);
    if (limits.work == 0 || (sizes['N'] != kUnknown && sizes['N'] <= limits.beyond)) {
        return;
    }
    std::int64_t work = 1;  // three factors below 2^21 each
    std::string told;
    for (const char* const factor : limits.factors) {
        if (factor == nullptr) {
            continue;
        }
        const std::int64_t size = factor[1] == '\0' ? sizes[factor[0]] : values.number(factor);
        if (size == kUnknown) {
            return;
        }
        work *= size;
        told += std::string(told.empty() ? "" : " x ") + factor;
    }
    if (work > limits.work) {
        refuse(told, " is ", work, ", the kernels take up to ", limits.work,
               ": one launch would run for too long; leave the node its function");
    }
}

Sizes Operator::given(const Values& values) const {
    Sizes sizes;
    for (const auto& [letter, name] : set_by) {
        for (const Field& field : fields) {
            if (std::strcmp(field.name, name) == 0) {
                sizes.set(letter, field.kind == Kind::kList
                                      ? static_cast<std::int64_t>(values.list(name).size())
                                      : values.number(name));
            }
        }
    }
    return sizes;
}

void Operator::enter(Sizes& sizes, int i, int rank, const std::int64_t* axes) const {
    const Tensor& tensor = inputs.at(static_cast<std::size_t>(i));
    if (std::strcmp(tensor.shape, "*") == 0) {
        if (rank > kMostAxes) {
            refuse("input '", tensor.name, "' has ", rank, " axes, at most ", kMostAxes, " are taken");
        }
        return;
    }
    if (rank != static_cast<int>(std::strlen(tensor.shape))) {
        refuse("input '", tensor.name, "' has ", rank, " axes, [", tensor.shape, "] was expected");
    }
    for (int axis = 0; axis < rank; ++axis) {
        const char letter = tensor.shape[axis];
        const std::int64_t size = axes[axis];
        if (size == kUnknown) {
            continue;
        }
        if (letter == '1') {
            if (size != 1) {
                refuse("axis ", axis, " of input '", tensor.name, "' is ", size, ", not 1");
            }
            continue;
        }
        if (size < (letter == 'R' || letter == 'B' ? 0 : 1) || size > most(letter)) {
            refuse("axis ", axis, " of input '", tensor.name, "' is ", size, ", the kernels take up to ",
                   most(letter));
        }
        if (sizes[letter] != kUnknown && sizes[letter] != size) {
            refuse("axis ", axis, " of input '", tensor.name, "' is ", size, ", but ", letter, " is ",
                   sizes[letter], " elsewhere");
        }
        sizes.set(letter, size);
    }
    const bool known = rank > 2 && axes[rank - 2] != kUnknown && axes[rank - 1] != kUnknown;
    if (known && axes[rank - 2] * axes[rank - 1] > kMostElements) {
        refuse("input '", tensor.name, "' has ", axes[rank - 2] * axes[rank - 1],
               " elements an image, the kernels take up to ", kMostElements);
    }
}

std::string Operator::described() const {
    constexpr const char* kKinds[] = {"int", "float", "size", "list"};
    constexpr const char* kTypes[] = {"own", "free", "float32", "int64"};
    std::ostringstream text;
    text << "operator " << name << "\n";
    for (const Field& field : fields) {
        text << "field " << field.name << " " << kKinds[static_cast<int>(field.kind)] << " " << field.least
             << " " << field.most << "\n";
    }
    for (const auto* const tensors : {&inputs, &outputs}) {
        for (const Tensor& tensor : *tensors) {
            text << (tensors == &inputs ? "input " : "output ") << tensor.name << " " << tensor.shape << " "
                 << kTypes[static_cast<int>(tensor.type)] << "\n";
        }
    }
    return text.str();
}

}  // namespace tokenrt::plugin
