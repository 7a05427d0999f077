#include "operator.h"

#include <cstring>

#include "report.h"

namespace tokenrt::plugin {

namespace {

constexpr int kMostTokens = 16384, kMostWidth = 4096, kMostBatch = 1024, kMostHeads = 256, kMostAxes = 4;

}  // namespace

int Operator::most(char letter) const {
    switch (letter) {
        case 'B':
            return kMostBatch;
        case 'H':
            return kMostHeads;
        case 'C':
        case 'D':
            return kMostWidth;
        default:
            return kMostTokens;
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
        if (size < (letter == 'R' ? 0 : 1) || size > most(letter)) {
            refuse("axis ", axis, " of input '", tensor.name, "' is ", size, ", the kernels take up to ",
                   most(letter));
        }
        if (sizes[letter] != kUnknown && sizes[letter] != size) {
            refuse("axis ", axis, " of input '", tensor.name, "' is ", size, ", but ", letter, " is ",
                   sizes[letter], " elsewhere");
        }
        sizes.set(letter, size);
    }
}

std::string Operator::described() const {
    constexpr const char* kKinds[] = {"int", "float", "size", "list"};
    constexpr const char* kTypes[] = {"own", "float32", "int64"};
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
